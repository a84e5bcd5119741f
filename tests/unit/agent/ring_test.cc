// The ring between a program that may lie and an agent that believes nothing.

#include "persist/agent/ring.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <thread>

namespace holdfast::ring {
namespace {

struct Pair {
  Consumer consumer;
  Producer producer;
};

Pair make(uint32_t slots = 16) {
  auto consumer = Consumer::create(slots);
  EXPECT_TRUE(consumer);
  auto producer = Producer::attach(consumer->memfd(), slots);
  EXPECT_TRUE(producer);
  return {std::move(*consumer), std::move(*producer)};
}

Record map_at(uint64_t iova) {
  Record record;
  record.op = static_cast<uint32_t>(Op::kMap);
  record.container = 1;
  record.iova = iova;
  record.size = 4096;
  return record;
}

TEST(Ring, RecordsComeOutInOrderAcrossManyTurns) {
  auto [consumer, producer] = make();
  uint64_t expected = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    ASSERT_NE(producer.push(map_at(i)), Producer::Push::kFull);
    if (i % 7 != 0) continue;
    Record record;
    while (*consumer.pop(record)) ASSERT_EQ(record.iova, expected++);
    consumer.publish();
  }
}

TEST(Ring, AFullRingSaysSoAndKeepsWhatItHas) {
  auto [consumer, producer] = make(16);
  for (uint64_t i = 0; i < 16; ++i) ASSERT_NE(producer.push(map_at(i)), Producer::Push::kFull);
  EXPECT_EQ(producer.push(map_at(99)), Producer::Push::kFull);
  Record record;
  for (uint64_t i = 0; i < 16; ++i) {
    ASSERT_TRUE(*consumer.pop(record));
    EXPECT_EQ(record.iova, i);
  }
  EXPECT_FALSE(*consumer.pop(record));
  EXPECT_EQ(producer.push(map_at(99)), Producer::Push::kFull) << "nothing was published yet";
  consumer.publish();
  EXPECT_NE(producer.push(map_at(99)), Producer::Push::kFull);
}

TEST(Ring, OnlyASleeperIsWoken) {
  auto [consumer, producer] = make();
  EXPECT_EQ(producer.push(map_at(0)), Producer::Push::kDone);
  EXPECT_FALSE(consumer.fall_asleep()) << "there is a record";
  Record record;
  ASSERT_TRUE(*consumer.pop(record));
  consumer.publish();
  EXPECT_TRUE(consumer.fall_asleep());
  EXPECT_EQ(producer.push(map_at(1)), Producer::Push::kWake);
  EXPECT_EQ(producer.push(map_at(2)), Producer::Push::kDone);
}

TEST(Ring, AClosedBarrierLetsNobodyIn) {
  auto [consumer, producer] = make();
  ASSERT_TRUE(producer.enter());
  EXPECT_EQ(consumer.in_flight(), 1u);
  consumer.set_barrier(Barrier::kFreezing);
  EXPECT_FALSE(producer.enter());
  EXPECT_EQ(consumer.in_flight(), 1u) << "the call under way still counts";
  producer.leave();
  EXPECT_EQ(consumer.in_flight(), 0u);
  consumer.set_barrier(Barrier::kOpen);
  EXPECT_TRUE(producer.enter());
}

TEST(Ring, LostRecordsAreSeenOnce) {
  auto [consumer, producer] = make();
  EXPECT_FALSE(consumer.any_lost());
  producer.count_lost(3);
  EXPECT_TRUE(consumer.any_lost());
  EXPECT_TRUE(consumer.take_lost(3));
  EXPECT_FALSE(consumer.take_lost(3));
  EXPECT_FALSE(consumer.take_lost(4));
}

/// What a hostile program can write: its own page and the records.
class Forged : public ::testing::Test {
 protected:
  Forged() : consumer(std::move(Consumer::create(16).value())) {
    map = std::move(MappedRange::map(consumer.memfd(), 0, kHeaderBytes + 16 * sizeof(Record),
                                     MappedRange::Mode::kReadWrite)
                        .value());
  }
  ClientPage& client() { return *reinterpret_cast<ClientPage*>(map.data() + 4096); }
  Record* records() { return reinterpret_cast<Record*>(map.data() + kHeaderBytes); }
  Consumer consumer;
  MappedRange map;
};

TEST_F(Forged, AHeadBeyondTheRingIsRefused) {
  client().head = 17;
  Record record;
  const auto popped = consumer.pop(record);
  ASSERT_FALSE(popped);
  EXPECT_EQ(popped.error().code, "HF-CLIENT-RING");
}

TEST_F(Forged, AHeadThatGoesBackIsRefused) {
  client().head = 2;
  records()[0].sequence = 0;
  records()[1].sequence = 1;
  Record record;
  ASSERT_TRUE(*consumer.pop(record));
  ASSERT_TRUE(*consumer.pop(record));
  client().head = 1;
  EXPECT_FALSE(consumer.pop(record));
}

TEST_F(Forged, ARecordWithAnotherSequenceIsRefused) {
  client().head = 1;
  records()[0].sequence = 7;
  Record record;
  EXPECT_FALSE(consumer.pop(record));
}

TEST_F(Forged, TheMemoryCannotBeShrunkUnderTheAgent) {
  EXPECT_NE(::ftruncate(consumer.memfd().get(), 0), 0);
}

TEST(Ring, TwoThreadsAgree) {
  auto pair = make(64);
  constexpr uint64_t kRecords = 200'000;
  std::thread program([&] {
    for (uint64_t i = 0; i < kRecords;) {
      if (pair.producer.push(map_at(i)) == Producer::Push::kFull)
        std::this_thread::yield();
      else
        ++i;
    }
  });
  uint64_t next = 0;
  Record record;
  while (next < kRecords) {
    auto popped = pair.consumer.pop(record);
    ASSERT_TRUE(popped) << popped.error().message();
    if (!*popped) {
      pair.consumer.publish();
      continue;
    }
    ASSERT_EQ(record.iova, next++);
  }
  program.join();
}

}  // namespace
}  // namespace holdfast::ring
