#include "e1000e.h"

#include <errno.h>
#include <string.h>
#include <time.h>

enum {
  kCtrl = 0x0000,
  kStatus = 0x0008,
  kImc = 0x00d8,
  kRctl = 0x0100,
  kTctl = 0x0400,
  kRdbal = 0x2800,
  kRdbah = 0x2804,
  kRdlen = 0x2808,
  kRdh = 0x2810,
  kRdt = 0x2818,
  kTdbal = 0x3800,
  kTdbah = 0x3804,
  kTdlen = 0x3808,
  kTdh = 0x3810,
  kTdt = 0x3818,
};
enum {
  kCtrlFullDuplex = 1u << 0,
  kCtrlSetLinkUp = 1u << 6,
  kCtrlReset = 1u << 26,
  kRctlEnable = 1u << 1,
  kRctlPromiscuous = 3u << 3,
  kRctlMacLoopback = 1u << 6,
  kRctlBroadcast = 1u << 15,
  kRctlStripCrc = 1u << 26,
  kTctlEnable = 1u << 1,
  kTctlPad = 1u << 3,
  kTxEndOfPacket = 1u << 0,
  kTxInsertCrc = 1u << 1,
  kTxReportStatus = 1u << 3,
  kDescriptorDone = 1u << 0,
};

// Legacy descriptors, sections 7.1.4 and 7.2.10.
struct receive_descriptor {
  uint64_t address;
  uint16_t length, checksum;
  uint8_t status, errors;
  uint16_t special;
};
struct transmit_descriptor {
  uint64_t address;
  uint16_t length;
  uint8_t checksum_offset, command, status, checksum_start;
  uint16_t special;
};
_Static_assert(sizeof(struct receive_descriptor) == 16, "legacy descriptor");
_Static_assert(sizeof(struct transmit_descriptor) == 16, "legacy descriptor");

static void write32(const struct e1000e* nic, uint32_t at, uint32_t value) {
  *(volatile uint32_t*)(nic->bar + at) = value;
}
static uint32_t read32(const struct e1000e* nic, uint32_t at) {
  return *(volatile uint32_t*)(nic->bar + at);
}

static void sleep_ms(long ms) {
  const struct timespec pause = {.tv_nsec = ms * 1000 * 1000};
  nanosleep(&pause, NULL);
}

static volatile struct receive_descriptor* receive(const struct e1000e* nic, uint32_t slot) {
  return (volatile struct receive_descriptor*)(nic->memory + nic->layout.receive_ring) + slot;
}
static volatile struct transmit_descriptor* transmit(const struct e1000e* nic, uint32_t slot) {
  return (volatile struct transmit_descriptor*)(nic->memory + nic->layout.transmit_ring) + slot;
}

int e1000e_is_set_up(const struct vfio_device* vfio, const struct e1000e_layout* layout) {
  size_t size;
  vfio_bus_master(vfio, 1);
  struct e1000e nic = {.bar = vfio_map_bar0(vfio, &size)};
  uint64_t ring = iova_of(layout->receive_ring);
  return read32(&nic, kRdbal) == (uint32_t)ring && read32(&nic, kRdbah) == (uint32_t)(ring >> 32) &&
         (read32(&nic, kRctl) & kRctlEnable) != 0;
}

void e1000e_start(struct e1000e* nic, const struct vfio_device* vfio, void* memory,
                  const struct e1000e_layout* layout) {
  size_t size;
  nic->bar = vfio_map_bar0(vfio, &size);
  nic->memory = memory;
  nic->layout = *layout;
  nic->next = 0;
  vfio_bus_master(vfio, 1);

  write32(nic, kImc, 0xffffffff);
  write32(nic, kCtrl, read32(nic, kCtrl) | kCtrlReset);
  sleep_ms(10);
  write32(nic, kImc, 0xffffffff);
  write32(nic, kCtrl, read32(nic, kCtrl) | kCtrlSetLinkUp | kCtrlFullDuplex);

  memset(nic->memory + layout->receive_ring, 0, E1000E_RING * sizeof(struct receive_descriptor));
  memset(nic->memory + layout->transmit_ring, 0, E1000E_RING * sizeof(struct transmit_descriptor));
  for (uint32_t i = 0; i < E1000E_RING; i++)
    receive(nic, i)->address = iova_of(layout->receive_buffers + i * E1000E_BUFFER);

  uint64_t ring = iova_of(layout->receive_ring);
  write32(nic, kRdbal, (uint32_t)ring);
  write32(nic, kRdbah, (uint32_t)(ring >> 32));
  write32(nic, kRdlen, E1000E_RING * sizeof(struct receive_descriptor));
  write32(nic, kRdh, 0);
  write32(nic, kRdt, E1000E_RING - 1);
  ring = iova_of(layout->transmit_ring);
  write32(nic, kTdbal, (uint32_t)ring);
  write32(nic, kTdbah, (uint32_t)(ring >> 32));
  write32(nic, kTdlen, E1000E_RING * sizeof(struct transmit_descriptor));
  write32(nic, kTdh, 0);
  write32(nic, kTdt, 0);
  write32(nic, kRctl,
          kRctlEnable | kRctlPromiscuous | kRctlMacLoopback | kRctlBroadcast | kRctlStripCrc);
  write32(nic, kTctl, kTctlEnable | kTctlPad);
}

uint32_t e1000e_slot(const struct e1000e* nic) {
  return nic->next;
}

int e1000e_loop(struct e1000e* nic, uint32_t slot, uint32_t bytes) {
  volatile struct transmit_descriptor* out = transmit(nic, slot);
  volatile struct receive_descriptor* in = receive(nic, slot);
  in->status = 0;
  out->address = iova_of(nic->layout.transmit_buffers + slot * E1000E_BUFFER);
  out->length = (uint16_t)bytes;
  out->checksum_offset = 0;
  out->status = 0;
  out->command = kTxEndOfPacket | kTxInsertCrc | kTxReportStatus;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  nic->next = (slot + 1) % E1000E_RING;
  write32(nic, kTdt, nic->next);
  for (int i = 0; i < 1000; i++) {
    if (in->status & kDescriptorDone) {
      // Hand the slot behind this one back to the device; one always stays between head and tail.
      write32(nic, kRdt, slot);
      return in->length == bytes ? 0 : 1;
    }
    sleep_ms(2);
  }
  return 1;
}

void e1000e_stop(struct e1000e* nic) {
  write32(nic, kRctl, 0);
  write32(nic, kTctl, 0);
}
