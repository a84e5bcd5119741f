#include "kexec/recordable.h"

#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "persist/base/checked.h"
#include "persist/base/unique_fd.h"

namespace holdfast::command {
namespace {

constexpr int kScriptDepth = 5;  ///< as the kernel's: a script's interpreter may be a script
constexpr size_t kMaxHeaders = 1024;
#if defined(__x86_64__)
constexpr unsigned kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr unsigned kMachine = EM_AARCH64;
#else
#error "which machine is this?"
#endif

std::unexpected<Error> cannot(const std::string& path, std::string_view why) {
  return refuse(Exit::kUnsupported, "HF-RECORD-CANNOT", path,
                fmt::format("cannot be recorded: {}", why),
                "a program of one's own uses libholdfast instead: docs/integrate.md");
}

bool read_at(BorrowedFd fd, void* into, size_t size, uint64_t offset) {
  return ::pread(fd.get(), into, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size);
}

/// The loader (PT_INTERP); empty: it has none.
Result<std::string> loader_of(const std::string& path, BorrowedFd fd, const Elf64_Ehdr& head) {
  if (head.e_phentsize != sizeof(Elf64_Phdr) || head.e_phnum > kMaxHeaders)
    return fail(path, "has program headers that make no sense");
  for (size_t i = 0; i < head.e_phnum; ++i) {
    Elf64_Phdr program{};
    const auto offset = checked_add(head.e_phoff, i * sizeof program);
    if (!offset || !read_at(fd, &program, sizeof program, *offset))
      return fail(path, "ends within its program headers");
    if (program.p_type != PT_INTERP) continue;
    char name[256] = {};
    const size_t size = std::min<size_t>(program.p_filesz, sizeof name - 1);
    if (!read_at(fd, name, size, program.p_offset)) return fail(path, "ends within its loader");
    return std::string(name);
  }
  return std::string();
}

Result<void> check_program(const std::string& path, BorrowedFd fd) {
  Elf64_Ehdr head{};
  if (!read_at(fd, &head, sizeof head, 0)) return cannot(path, "it is too short to be a program");
  if (head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_machine != kMachine)
    return cannot(path, "it is for another kind of machine than this holdfast");
  HOLDFAST_TRY_ASSIGN(const std::string loader, loader_of(path, fd, head));
  if (loader.empty())
    return cannot(path, "it is statically linked, so that its calls pass no library");
  if (loader.find("/ld-linux") == std::string::npos)
    return cannot(path, fmt::format("its C library is another one ({})", loader));
  return {};
}

Result<void> check_rights(const std::string& path, BorrowedFd fd) {
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail_errno(errno, path, "fstat");
  const bool changes_user = (info.st_mode & S_ISUID) != 0 && info.st_uid != ::getuid();
  const bool changes_group =
      (info.st_mode & S_ISGID) != 0 && (info.st_mode & S_IXGRP) != 0 && info.st_gid != ::getgid();
  const bool gains =
      ::geteuid() != 0 && ::fgetxattr(fd.get(), "security.capability", nullptr, 0) > 0;
  if (changes_user || changes_group || gains)
    return cannot(path, changes_user ? "it is set-user-id, and the loader takes no library along"
                        : changes_group
                            ? "it is set-group-id, and the loader takes no library along"
                            : "it has file capabilities, and the loader takes no "
                              "library along");
  return {};
}

/// The interpreter that "#!" names; empty: it is no script.
std::string interpreter_of(BorrowedFd fd) {
  char line[256] = {};
  const ssize_t n = ::pread(fd.get(), line, sizeof line - 1, 0);
  const std::string_view text(line, n > 0 ? static_cast<size_t>(n) : 0);
  if (!text.starts_with("#!")) return {};
  const size_t begin = text.find_first_not_of(" \t", 2);
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_first_of(" \t\n", begin) - begin));
}

Result<void> check(const std::string& path, int depth) {
  HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(path, O_RDONLY));
  char magic[SELFMAG] = {};
  if (!read_at(fd, magic, sizeof magic, 0) || std::memcmp(magic, ELFMAG, SELFMAG) != 0) {
    const std::string interpreter = interpreter_of(fd);
    if (interpreter.empty()) return cannot(path, "it is neither an ELF program nor a script");
    if (depth == kScriptDepth) return cannot(path, "its interpreters are scripts without end");
    return check(interpreter, depth + 1);
  }
  HOLDFAST_TRY(check_rights(path, fd));
  return check_program(path, fd);
}

}  // namespace

Result<void> check_recordable(const std::string& path) {
  return check(path, 0);
}

}  // namespace holdfast::command
