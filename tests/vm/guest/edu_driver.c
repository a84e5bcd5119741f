// A user-space driver of QEMU's edu device on libholdfast. Each transfer: a stamped block of memory
// into the device, from there to another IOVA, compare.

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "driver.h"
#include "edu.h"

#define BLOCK_STEP 4096u
#define BLOCKS 512u
#define SOURCE 0x400000ull  // offsets in the region
#define TARGET 0x600000ull

struct state {
  struct edu edu;
  uint8_t* memory;
};

static uint64_t source_of(uint64_t sequence) {
  return SOURCE + sequence % BLOCKS * BLOCK_STEP;
}
static uint64_t target_of(uint64_t sequence) {
  return TARGET + (sequence * 37 + 11) % BLOCKS * BLOCK_STEP;
}

static void start(void* self, const struct vfio_device* vfio, void* memory) {
  struct state* state = self;
  state->memory = memory;
  edu_start(&state->edu, vfio);
}

static int transfer(void* self, uint64_t sequence) {
  struct state* state = self;
  uint8_t* source = state->memory + source_of(sequence);
  uint8_t* target = state->memory + target_of(sequence);
  pattern_fill(source, EDU_BLOCK, sequence, 0);
  memset(target, 0, EDU_BLOCK);
  if (edu_load(&state->edu, iova_of(source_of(sequence)), EDU_BLOCK)) return 1;
  if (edu_store(&state->edu, iova_of(target_of(sequence)), EDU_BLOCK)) return 1;
  return memcmp(source, target, EDU_BLOCK) != 0;
}

static void halt(void* self, const struct vfio_device* vfio) {
  (void)self;
  vfio_bus_master(vfio, 0);
}

// edu cannot be reset: what it read last, before the kexec, must still be in it.
static int examine(void* self, const struct vfio_device* vfio, void* memory, uint64_t sequence,
                   char* text, size_t size) {
  struct state* state = self;
  uint64_t there = target_of(sequence + 1);
  start(self, vfio, memory);
  memset(state->memory + there, 0, EDU_BLOCK);
  if (edu_store(&state->edu, iova_of(there), EDU_BLOCK)) {
    snprintf(text, size, "its DMA does not end");
    return 1;
  }
  uint64_t wrong = pattern_check(state->memory + there, EDU_BLOCK, sequence, 0);
  snprintf(text, size, "its memory holds %llu wrong bytes of block %llu", (unsigned long long)wrong,
           (unsigned long long)sequence);
  return wrong != 0;
}

int main(int argc, char** argv) {
  static struct state state;
  const struct device_model model = {"edu", &state, start, transfer, halt, examine};
  return driver_main(argc, argv, &model);
}
