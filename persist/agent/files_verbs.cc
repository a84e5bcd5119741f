// files/: the mount sends its writes here while an agent runs, because there is one writer. Bytes
// ride in the tail of the message, or in a memfd when there are more than kMaxTail.

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>

#include "persist/agent/arguments.h"
#include "persist/agent/server_impl.h"
#include "persist/agent/transport.h"

namespace holdfast::agent {
namespace {

constexpr uint64_t kMaxTransfer = 16 << 20;  ///< bytes of one read or write

Json file_json(const arena::FileInfo& info) {
  return Json{{"path", info.path},         {"directory", info.directory},
              {"size", info.size},         {"mode", info.mode},
              {"uid", info.uid},           {"gid", info.gid},
              {"mtime_ns", info.mtime_ns}, {"id", info.id}};
}

Reply empty_reply() {
  Reply out;
  out.body = json_document("files");
  return out;
}

struct Creation {
  std::string path;
  uint32_t mode = 0600, uid = 0, gid = 0;
};

Result<Creation> creation(const Json& body) {
  Creation out;
  HOLDFAST_TRY_ASSIGN(out.path, text_argument(body, "path"));
  HOLDFAST_TRY_ASSIGN(const uint64_t mode, number_argument(body, "mode", 0600));
  HOLDFAST_TRY_ASSIGN(const uint64_t uid, number_argument(body, "uid", 0));
  HOLDFAST_TRY_ASSIGN(const uint64_t gid, number_argument(body, "gid", 0));
  out.mode = static_cast<uint32_t>(mode & 07777);
  out.uid = static_cast<uint32_t>(uid);
  out.gid = static_cast<uint32_t>(gid);
  return out;
}

Result<std::optional<uint32_t>> optional_number(const Json& body, const char* key) {
  if (!has(body, key)) return std::optional<uint32_t>();
  HOLDFAST_TRY_ASSIGN(const uint64_t value, number_argument(body, key));
  return std::optional(static_cast<uint32_t>(value));
}

}  // namespace

void Server::Impl::add_files_verbs(Server& server) {
  const auto add = [&server](const char* name, Handler handler) {
    server.add_verb(name, Access::kPrivileged, std::move(handler));
  };
  add("files_stat", [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string path, text_argument(request.parcel.body, "path"));
    HOLDFAST_TRY_ASSIGN(const arena::FileInfo info, writer.file_stat(path));
    Reply out = empty_reply();
    out.body["file"] = file_json(info);
    return out;
  });
  add("files_list", [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string path, text_argument(request.parcel.body, "path"));
    HOLDFAST_TRY_ASSIGN(const auto list, writer.file_list(path));
    Reply out = empty_reply();
    out.body["files"] = Json::array();
    for (const auto& info : list) out.body["files"].push_back(file_json(info));
    return out;
  });
  add("files_create", [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const Creation made, creation(request.parcel.body));
    HOLDFAST_TRY(writer.file_create(made.path, made.mode, made.uid, made.gid));
    return empty_reply();
  });
  add("files_mkdir", [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const Creation made, creation(request.parcel.body));
    HOLDFAST_TRY(writer.file_mkdir(made.path, made.mode, made.uid, made.gid));
    return empty_reply();
  });
  add("files_write", [this](Request& request) -> Result<Reply> {
    const Json& body = request.parcel.body;
    HOLDFAST_TRY_ASSIGN(const std::string path, text_argument(body, "path"));
    HOLDFAST_TRY_ASSIGN(const uint64_t offset, number_argument(body, "offset", 0));
    std::vector<std::byte> bytes = std::move(request.parcel.tail);
    if (!request.parcel.descriptors.empty()) {
      HOLDFAST_TRY_ASSIGN(bytes,
                          protocol::read_whole(request.parcel.descriptors.front(), kMaxTransfer));
    }
    HOLDFAST_TRY(writer.file_write(path, offset, bytes));
    Reply out = empty_reply();
    out.body["written"] = bytes.size();
    return out;
  });
  add("files_read", [this](Request& request) -> Result<Reply> {
    const Json& body = request.parcel.body;
    HOLDFAST_TRY_ASSIGN(const std::string path, text_argument(body, "path"));
    HOLDFAST_TRY_ASSIGN(const uint64_t offset, number_argument(body, "offset", 0));
    HOLDFAST_TRY_ASSIGN(const uint64_t length, number_argument(body, "length"));
    if (length > kMaxTransfer)
      return refuse(Exit::kUsage, {}, "length", fmt::format("at most {} bytes", kMaxTransfer));
    HOLDFAST_TRY_ASSIGN(auto bytes, writer.file_read(path, offset, length));
    Reply out = empty_reply();
    out.body["length"] = bytes.size();
    if (bytes.size() <= protocol::kMaxTail) {
      out.tail = std::move(bytes);
    } else {
      HOLDFAST_TRY_ASSIGN(UniqueFd memfd, protocol::sealed_memfd("holdfast-file", bytes));
      out.descriptors.push_back(std::move(memfd));
    }
    return out;
  });
  add("files_truncate", [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string path, text_argument(request.parcel.body, "path"));
    HOLDFAST_TRY_ASSIGN(const uint64_t size, number_argument(request.parcel.body, "size"));
    HOLDFAST_TRY(writer.file_truncate(path, size));
    return empty_reply();
  });
  add("files_rename", [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string from, text_argument(request.parcel.body, "from"));
    HOLDFAST_TRY_ASSIGN(const std::string to, text_argument(request.parcel.body, "to"));
    HOLDFAST_TRY(writer.file_rename(from, to, flag_argument(request.parcel.body, "may_replace")));
    return empty_reply();
  });
  add("files_unlink", [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string path, text_argument(request.parcel.body, "path"));
    HOLDFAST_TRY(writer.file_unlink(path));
    return empty_reply();
  });
  add("files_rmdir", [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string path, text_argument(request.parcel.body, "path"));
    HOLDFAST_TRY(writer.file_rmdir(path));
    return empty_reply();
  });
  add("files_attributes", [this](Request& request) -> Result<Reply> {
    const Json& body = request.parcel.body;
    HOLDFAST_TRY_ASSIGN(const std::string path, text_argument(body, "path"));
    HOLDFAST_TRY_ASSIGN(const auto mode, optional_number(body, "mode"));
    HOLDFAST_TRY_ASSIGN(const auto uid, optional_number(body, "uid"));
    HOLDFAST_TRY_ASSIGN(const auto gid, optional_number(body, "gid"));
    std::optional<uint64_t> mtime;
    if (has(body, "mtime_ns")) {
      HOLDFAST_TRY_ASSIGN(mtime, number_argument(body, "mtime_ns"));
    }
    HOLDFAST_TRY(writer.file_attributes(path, mode, uid, gid, mtime));
    return empty_reply();
  });
  add("files_space", [this](Request&) -> Result<Reply> {
    const arena::Header header = writer.header();
    Reply reply;
    reply.body = Json{
        {"quota", header.files_quota}, {"used", header.files_used}, {"free", header.files_free}};
    return reply;
  });
  add("files_sync", [this](Request&) -> Result<Reply> {
    HOLDFAST_TRY(writer.file_sync());
    return empty_reply();
  });
}

}  // namespace holdfast::agent
