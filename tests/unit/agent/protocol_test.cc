#include "persist/agent/protocol.h"

#include <gmock/gmock.h>
#include <sys/socket.h>

#include <cstring>

#include "persist/agent/control_client.h"
#include "persist/agent/transport.h"
#include "persist/base/io.h"
#include "tests/support/scratch.h"

namespace holdfast::protocol {
namespace {

using ::testing::HasSubstr;

std::vector<Message> samples() {
  Hello hello;
  hello.program = "qemu";
  Welcome welcome;
  welcome.state = 1;
  welcome.ring_slots = 16384;
  welcome.session = 0x1122334455667788;
  welcome.program = "holdfastd";
  Control control;
  control.json = blob(R"({"verb":"ping"})");
  control.tail = blob("tail");
  TakeReply take;
  take.container = 7;
  take.labels = {{DescriptorRole::kContainer, 7, 0, "vm0"},
                 {DescriptorRole::kMemory, 3, 1 << 21, "guest-ram"}};
  Progress progress;
  progress.json = control.json;
  ControlResult result;
  result.json = control.json;
  return {hello,
          welcome,
          ErrorMessage{blob("{}")},
          Ack{1, 2},
          RegisterContainer{5, 30, 0, 7, "vm0"},
          RegisterDevice{7, kDeviceConsentsToReinit, "0000:00:04.0"},
          RegisterMemory{"guest-ram", "/dev/dax0.0"},
          Unregister{Subject::kMemory, 3},
          Sync{},
          Resync{7, 100},
          Incomplete{7, "the ring was full"},
          Take{"vm0"},
          take,
          Taken{"vm0"},
          Quiesce{4, 1000},
          Quiesced{4, 1, ""},
          Frozen{4, 9},
          Thawed{4, "thaw"},
          Hold{7, 60},
          Handover{"vm0", 1000},
          Relinquish{8, 7, 1000, "pid 4711 (qemu)"},
          HandoverStep{8, Step::kReturned, "it died"},
          Give{8, 100},
          Addresses{7, 100},
          GiveBack{"vm0"},
          Pair{Pair::Says::kNo, "no memory"},
          Recorded{Stop::kNone, "no cgroup"},
          Reattach{},
          UnregisterDevice{7},
          RegisterAnonymous{"vm0.anonymous"},
          control,
          progress,
          result};
}

TEST(Protocol, EveryMessageComesBackAsItWas) {
  const auto all = samples();
  ASSERT_EQ(all.size(), std::variant_size_v<Message>);
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].index(), i) << "one sample for each message";
    const auto bytes = encode(all[i], 42, 3);
    const auto packet = decode(bytes);
    ASSERT_TRUE(packet) << i << ": " << packet.error().message();
    EXPECT_EQ(packet->header.request, 42u);
    EXPECT_EQ(packet->header.descriptors, 3u);
    EXPECT_TRUE(packet->message == all[i]) << type_name(MessageType(packet->header.type));
  }
}

TEST(Protocol, HalfAMessageIsRefusedWhereverItEnds) {
  for (const auto& message : samples()) {
    const auto whole = encode(message, 1);
    for (size_t length = 0; length < whole.size(); ++length) {
      EXPECT_FALSE(decode(std::span(whole).first(length)));
      if (length < sizeof(Header)) continue;
      // The same with a header that admits to it.
      auto cut = std::vector(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(length));
      const auto body = static_cast<uint32_t>(length - sizeof(Header));
      std::memcpy(cut.data() + offsetof(Header, length), &body, sizeof body);
      EXPECT_FALSE(decode(cut)) << message.index() << " cut at " << length;
    }
  }
}

TEST(Protocol, AMessageWithSomethingAppendedIsRefusedButInTheHandshake) {
  for (const auto& message : samples()) {
    auto longer = encode(message, 1);
    longer.push_back(std::byte{1});
    const auto body = static_cast<uint32_t>(longer.size() - sizeof(Header));
    std::memcpy(longer.data() + offsetof(Header, length), &body, sizeof body);
    const bool handshake =
        std::holds_alternative<Hello>(message) || std::holds_alternative<Welcome>(message);
    EXPECT_EQ(decode(longer).has_value(), handshake) << message.index();
  }
}

TEST(Protocol, WhateverBitFlipsNothingImpossibleIsDecoded) {
  for (const auto& message : samples()) {
    const auto whole = encode(message, 1);
    for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
      auto bent = whole;
      bent[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
      const auto packet = decode(bent);
      if (packet) {
        EXPECT_LE(packet->header.descriptors, kMaxDescriptors);
      }
    }
  }
}

TEST(Protocol, OneVersionIsChosenOrTheRefusalNamesBothRanges) {
  Hello hello;
  hello.newest = 9;
  EXPECT_EQ(choose_version(hello), kNewestVersion);
  hello.oldest = 2;
  const auto refused = choose_version(hello);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "HF-PROTOCOL-VERSION");
  EXPECT_EQ(refused.error().exit, Exit::kUnsupported);
  EXPECT_THAT(refused.error().cause, HasSubstr("2 to 9"));
  hello = {};
  hello.oldest = 3;
  hello.newest = 1;
  EXPECT_FALSE(choose_version(hello));
}

std::vector<std::byte> golden(const std::string& name) {
  const auto text = read_file(std::string(HOLDFAST_GOLDEN) + "/protocol/" + name);
  if (!text) throw std::runtime_error(text.error().message());
  return blob(*text);
}

// The files were written by the first release. They never change: a later version adds its own.
TEST(GoldenHandshake, TheFirstReleasesBytesAreStillSpoken) {
  Hello client;
  client.program = "golden";
  Hello control = client;
  control.role = Role::kControl;
  Welcome welcome;
  welcome.state = 1;
  welcome.ring_slots = 16384;
  welcome.session = 0x0123456789abcdef;
  welcome.program = "holdfastd 0.1.0";
  EXPECT_EQ(encode(client, 0), golden("hello-client-v1"));
  EXPECT_EQ(encode(control, 0), golden("hello-control-v1"));
  EXPECT_EQ(encode(welcome, 0, 2), golden("welcome-client-v1"));
  const auto hello = decode(golden("hello-client-v1"));
  ASSERT_TRUE(hello);
  EXPECT_EQ(std::get<Hello>(hello->message), client);
  const auto answer = decode(golden("welcome-client-v1"));
  ASSERT_TRUE(answer);
  EXPECT_EQ(std::get<Welcome>(answer->message), welcome);
}

TEST(GoldenHandshake, AHelloOfALaterVersionWithMoreFieldsIsUnderstoodAndRefusedByVersion) {
  const auto hello = decode(golden("hello-later"));
  ASSERT_TRUE(hello) << hello.error().message();
  const auto version = choose_version(std::get<Hello>(hello->message));
  ASSERT_FALSE(version);
  EXPECT_EQ(version.error().code, "HF-PROTOCOL-VERSION");
}

struct Pair {
  Pair() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) throw errno;
    a.reset(fds[0]);
    b.reset(fds[1]);
  }
  UniqueFd a, b;
};

TEST(Transport, SurplusDescriptorsAreClosedAndRefused) {
  Pair pair;
  const auto bytes = encode(Ack{}, 1, 1);
  const size_t before = testing::open_descriptors();
  iovec vector{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(3 * sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(3 * sizeof(int));
  const int fds[3] = {0, 0, 0};
  std::memcpy(CMSG_DATA(c), fds, sizeof fds);
  ASSERT_GT(::sendmsg(pair.a.get(), &header, 0), 0);
  const auto received = receive(pair.b, true);
  ASSERT_FALSE(received);
  EXPECT_THAT(received.error().cause, HasSubstr("says 1 descriptors, brings 3"));
  EXPECT_EQ(testing::open_descriptors(), before);
}

TEST(Transport, ADatagramBeyondTheLimitIsRefused) {
  Pair pair;
  const std::vector<std::byte> much(kMaxMessageBytes + 1);
  ASSERT_GT(::send(pair.a.get(), much.data(), much.size(), 0), 0);
  EXPECT_FALSE(receive(pair.b, true));
}

TEST(Transport, TheEndOfThePeerIsNoMessage) {
  Pair pair;
  pair.a.reset();
  const auto received = receive(pair.b, true);
  ASSERT_TRUE(received);
  EXPECT_EQ(received->kind, Received::Kind::kClosed);
}

TEST(Parcel, JsonTooLongForAMessageTravelsInADescriptor) {
  Pair pair;
  Json body;
  body["text"] = std::string(300'000, 'x');
  ASSERT_TRUE(send_parcel<ControlResult>(pair.a, body, {}, {}, 1, true));
  auto received = receive(pair.b, true);
  ASSERT_TRUE(received);
  auto parcel = open_parcel(std::get<ControlResult>(std::move(received->packet.message)),
                            std::move(received->descriptors));
  ASSERT_TRUE(parcel);
  EXPECT_EQ(parcel->body["text"].get<std::string>().size(), 300'000u);
  EXPECT_TRUE(parcel->descriptors.empty());
}

TEST(Parcel, AnErrorArrivesAsItWasRaised) {
  const Error error = refuse(Exit::kUnsupported, "HF-FREEZE-NO-ADOPT", "policy adopt", "no\xff way",
                             "boot another kernel")
                          .error();
  const Error back = error_of(error_message(error));
  EXPECT_EQ(back.exit, Exit::kUnsupported);
  EXPECT_EQ(back.code, error.code);
  EXPECT_EQ(back.remedy, error.remedy);
}

}  // namespace
}  // namespace holdfast::protocol
