// The door's part for iommufd.

#include <cerrno>

#include "restore/kernel/sim/server.h"

namespace holdfast::sim {

Reply Server::iommufd_call(const Client& client, const Request& request, BorrowedFd about,
                           UniqueFd& handed) {
  Reply reply{};
  const KernelOptions& options = state_.options();
  const auto& args = request.args;
  if (!options.iommufd) {
    reply.error = ENOENT;
    return reply;
  }
  if (request.call == Call::kIommufdOpen || request.call == Call::kIommufdDevice) {
    Object object;
    object.kind =
        request.call == Call::kIommufdOpen ? ObjectKind::kIommufd : ObjectKind::kCharDevice;
    object.bdf = request.text;
    if (object.kind == ObjectKind::kIommufd)
      object.container = iommufd_.open();
    else if (state_.machine().device(object.bdf) == nullptr)
      reply.error = ENOENT;
    if (reply.error == 0) reply.error = hand_out(std::move(object), handed);
    return reply;
  }
  if (request.call == Call::kAttachIoas) {
    const Object* device = object_of(about, ObjectKind::kCharDevice);
    reply.error = device == nullptr ? EBADF
                  : !device->bound  ? EINVAL
                                    : iommufd_.attach(device->bdf, static_cast<uint32_t>(args[0]));
    return reply;
  }
  const Object* iommufd = object_of(about, ObjectKind::kIommufd);
  if (iommufd == nullptr) {
    reply.error = EBADF;
    return reply;
  }
  const uint64_t context = iommufd->container;
  const auto ioas = static_cast<uint32_t>(args[0]);
  switch (request.call) {
    case Call::kIoasAlloc: {
      uint32_t number = 0;
      reply.error = iommufd_.ioas_alloc(context, number);
      reply.values[0] = number;
      break;
    }
    case Call::kIoasRanges: {
      std::vector<IovaRange> ranges;
      reply.error = iommufd_.ranges(context, ioas, ranges);
      reply.values[0] = ranges.size();
      for (size_t i = 0; i < ranges.size() && 2 * i + 2 < reply.values.size(); ++i) {
        reply.values[1 + 2 * i] = ranges[i].start;
        reply.values[2 + 2 * i] = ranges[i].last;
      }
      break;
    }
    case Call::kIoasMap: {
      Iommufd::Area area;
      area.iova = args[1];
      area.size = args[2];
      area.physical = args[3];
      area.access = static_cast<uint32_t>(args[4]);
      area.by_file = args[5] != 0;
      area.owner = client.pid;
      reply.error = area.by_file && !options.change_process
                        ? ENOTTY
                        : iommufd_.map(context, ioas, static_cast<uint32_t>(args[0] >> 32), area);
      break;
    }
    case Call::kIoasUnmap:
      reply.error = iommufd_.unmap(context, ioas, args[1], args[2], reply.values[0]);
      break;
    case Call::kChangeProcess:
      reply.error = options.change_process ? iommufd_.change_process(context, client.pid) : ENOTTY;
      break;
    case Call::kBind: {
      const auto device = objects_.find(args[0]);
      if (device == objects_.end() || device->second.kind != ObjectKind::kCharDevice)
        reply.error = EBADF;
      else if (device->second.bound)
        reply.error = EINVAL;
      else
        reply.error = iommufd_.bind(context, device->second.bdf);
      if (reply.error == 0) device->second.bound = true;
      break;
    }
    default:
      reply.error = ENOTTY;
      break;
  }
  return reply;
}

}  // namespace holdfast::sim
