// Who has a container, and how it came to that: what `holdfast update` asks while a successor is on
// its way.

#include "persist/agent/arguments.h"
#include "persist/agent/server_impl.h"

namespace holdfast::agent {

void Server::Impl::note_succession(ContainerEntry& entry, const std::string& from,
                                   const Error* error) {
  const Passing& passing = *entry.passing;
  Succession out;
  out.id = passing.id;
  out.from = from;
  out.to = passing.successor;
  if (passing.agreed != Clock::time_point())
    out.gap_ms = std::chrono::duration<double, std::milli>(Clock::now() - passing.agreed).count();
  if (error != nullptr) out.error = *error;
  entry.last_passing = std::move(out);
}

void Server::Impl::add_succession_verb(Server& server) {
  server.add_verb("owner", Access::kAnyone, [this](Request& request) -> Result<Reply> {
    HOLDFAST_TRY_ASSIGN(const std::string name, text_argument(request.parcel.body, "name"));
    ContainerEntry* entry = registry.container(name);
    if (entry == nullptr) {
      registry.learn(writer.live());
      entry = registry.container(name);
    }
    if (entry == nullptr)
      return refuse(Exit::kRefused, "HF-CONTAINER-UNKNOWN", "container " + name.substr(0, 80),
                    "is not known", "holdfast show");
    const auto why = custody.why(name);
    Reply out;
    out.body = json_document("owner");
    out.body["name"] = name;
    out.body["pid"] = entry->owner.pid;
    out.body["uid"] = entry->owner.uid;
    out.body["command"] = entry->owner.command;
    out.body["connected"] = entry->client != 0;
    out.body["custody"] = why ? why_name(*why) : "none";
    out.body["mappings"] = writer.mapping_count(entry->id);
    out.body["under_way"] = entry->passing ? Json(entry->passing->successor) : Json();
    out.body["last"] = Json();
    if (entry->last_passing) {
      const Succession& last = *entry->last_passing;
      out.body["last"] = Json{{"id", hex(last.id)},
                              {"from", last.from},
                              {"to", last.to},
                              {"gap_ms", last.gap_ms},
                              {"error", last.error ? to_json(*last.error) : Json()}};
    }
    return out;
  });
}

}  // namespace holdfast::agent
