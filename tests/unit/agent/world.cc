#include "tests/unit/agent/world.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>

namespace holdfast::testing {

World::World(Options options) : options_(std::move(options)) {
  ::chmod(scratch_.path().c_str(), 0755);  // clients of other users find the socket
  const std::string machine = scratch_.file("machine");
  must(sim::Machine::create(machine, options_.machine));
  kernel_ = must(sim::Kernel::boot(machine, scratch_.file("kernel.sock"), options_.kernel));
  port_ = must(sim::SimPort::connect(scratch_.file("kernel.sock")));
  socket_ = scratch_.file("agent.sock");
  arena_ = scratch_.file("arena");
  arena::InitOptions init;
  init.for_mappings = options_.for_mappings;
  must(arena::init(arena_, init));
  start_agent();
}

World::~World() {
  stop_agent();
}

void World::start_agent() {
  agent_port_ = must(sim::SimPort::connect(scratch_.file("kernel.sock")));
  agent::ServerOptions given;
  given.socket_path = socket_;
  given.socket_mode = 0666;
  given.ring_slots = options_.server.ring_slots;
  given.barrier_timeout_ms = options_.server.barrier_timeout_ms;
  given.quotas = options_.server.quotas;
  server_ = must(
      agent::Server::create(std::move(given), must(arena::Writer::open(arena_)), *agent_port_));
  thread_ = std::thread([this] { must(server_->run()); });
}

void World::stop_agent() {
  if (!thread_.joinable()) return;
  server_->stop();
  thread_.join();
  server_.reset();
  agent_port_.reset();
}

Opened World::open(const std::string& bdf) {
  Opened out;
  out.description = must(port_->describe_device(bdf));
  out.container = must(port_->open_container(options_.kernel.behaviour != sim::Behaviour::kStock));
  out.group = must(port_->attach(out.container, out.description));
  out.device = must(port_->open_device(out.group, out.description));
  return out;
}

std::string World::memory_path(const std::string& name) {
  return port_->machine().region_path(name);
}

UniqueFd World::memory(const std::string& name) {
  return must(port_->open_region(must(port_->describe_region(memory_path(name)))));
}

Json World::call(std::string_view verb, Json arguments) {
  auto client = must(protocol::ControlClient::connect(socket_));
  return must(client.call(verb, std::move(arguments))).body;
}

Error World::refused(std::string_view verb, Json arguments) {
  auto client = must(protocol::ControlClient::connect(socket_));
  auto answer = client.call(verb, std::move(arguments));
  if (answer) throw std::runtime_error(std::string(verb) + " did not fail");
  return answer.error();
}

Json World::container(const std::string& name) {
  const Json all = health();
  for (const auto& line : all["containers"])
    if (line["name"] == name) return line;
  return {};
}

bool World::gone(const std::string& name) {
  for (int i = 0; i < 500; ++i) {
    if (container(name).is_null()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

std::string World::event(const std::string& code) {
  const Json all = health();
  for (const auto& one : all["events"])
    if (one["code"] == code)
      return one["object"].get<std::string>() + ": " + one["cause"].get<std::string>();
  return {};
}

RawClient::RawClient(const std::string& path, protocol::Role role)
    : socket(must(protocol::connect_to(path))) {
  auto hands = must(protocol::shake_hands(socket, role, "raw", 5000));
  slots = hands.welcome.ring_slots;
  if (role != protocol::Role::kClient) return;
  ring_memory = std::move(hands.descriptors.at(0));
  doorbell = std::move(hands.descriptors.at(1));
  ring.emplace(must(ring::Producer::attach(ring_memory, slots)));
}

Result<protocol::Message> RawClient::ask(const protocol::Message& message,
                                         const std::vector<BorrowedFd>& descriptors) {
  const uint64_t number = next_++;
  HOLDFAST_TRY(protocol::send(socket, message, number, descriptors));
  for (;;) {
    HOLDFAST_TRY_ASSIGN(const bool ready, protocol::wait_readable(socket, 5000));
    if (!ready) return fail("agent", "no answer");
    HOLDFAST_TRY_ASSIGN(protocol::Received received, protocol::receive(socket, false));
    if (received.kind == protocol::Received::Kind::kClosed) return fail("agent", "closed");
    if (received.kind == protocol::Received::Kind::kNothing) continue;
    if (const auto* error = std::get_if<protocol::ErrorMessage>(&received.packet.message))
      return std::unexpected(protocol::error_of(*error));
    if (received.packet.header.request == number) return std::move(received.packet.message);
  }
}

uint64_t RawClient::ack(const protocol::Message& message,
                        const std::vector<BorrowedFd>& descriptors) {
  return std::get<protocol::Ack>(must(ask(message, descriptors))).value;
}

uint32_t RawClient::add_container(const std::string& name, const Opened& opened, uint32_t hold) {
  protocol::RegisterContainer message;
  message.kind = static_cast<uint32_t>(ContainerKind::kSim);
  message.hold_seconds = hold;
  message.name = name;
  const auto id = static_cast<uint32_t>(ack(message, {opened.container}));
  protocol::RegisterDevice device;
  device.container = id;
  device.bdf = opened.description.bdf;
  ack(device, {opened.group, opened.device});
  return id;
}

uint32_t RawClient::add_memory(const std::string& name, const UniqueFd& fd,
                               const std::string& path) {
  return static_cast<uint32_t>(ack(protocol::RegisterMemory{name, path}, {fd}));
}

void RawClient::push(ring::Record record) {
  if (ring->push(record) == ring::Producer::Push::kDone) return;
  const uint64_t one = 1;
  if (::write(doorbell.get(), &one, sizeof one) != sizeof one) throw std::runtime_error("doorbell");
}

void RawClient::map(uint32_t container, uint32_t region, uint64_t iova, uint64_t size,
                    uint64_t offset) {
  ring::Record record;
  record.op = static_cast<uint32_t>(ring::Op::kMap);
  record.container = container;
  record.iova = iova;
  record.size = size;
  record.region_offset = offset;
  record.region = region;
  record.access = 3;
  push(record);
}

Result<protocol::Message> RawClient::next(int timeout_ms) {
  HOLDFAST_TRY_ASSIGN(const bool ready, protocol::wait_readable(socket, timeout_ms));
  if (!ready) return fail("agent", "says nothing");
  HOLDFAST_TRY_ASSIGN(protocol::Received received, protocol::receive(socket, false));
  if (received.kind != protocol::Received::Kind::kMessage) return fail("agent", "closed");
  return std::move(received.packet.message);
}

bool RawClient::closed_by_agent() {
  for (;;) {
    auto ready = protocol::wait_readable(socket, 5000);
    if (!ready || !*ready) return false;
    auto received = protocol::receive(socket, false);
    if (!received || received->kind == protocol::Received::Kind::kClosed) return true;
  }
}

}  // namespace holdfast::testing
