#ifndef HOLDFAST_VM_ADOPT_H
#define HOLDFAST_VM_ADOPT_H

// What the programs on the patched kernel share: its calls (docs/kernel.md), the layout of the
// region, and a receive ring that needs nobody. The host knows the same layout
// (lib/adopt_oracle).

#include <stdint.h>

#include "vfio.h"

// kexec/linux, not in any released header
#define ADOPT_TYPE1V2_PRESERVED 12
#define ADOPT_LIVE_UPDATE (1u << 3)
#define ADOPT_LEAVE_BEHIND (1u << 4)
#define ADOPT_FORGET (1u << 3)
#define ADOPT_PRESERVE _IO(';', 126)
#define ADOPT_QUERY 0u
#define ADOPT_HOLD 1u
#define ADOPT_THAW 2u
#define ADOPT_STATE_HELD 1u
#define ADOPT_STATE_ARMED 2u
#define ADOPT_STATE_INHERITED 4u
#define ADOPT_READ 1u
#define ADOPT_RW 3u

struct adopt_preserve {
  uint32_t argsz, op, state, reason;
};

// The region, by offset: mailbox at 0; ring at 2 MiB, mapped to IOVA 0 as one large page; buffers
// at 4 MiB, 2048 mappings of 4 KiB in an order that is not the device's; 2 MiB at 12 MiB that the
// device may only read.
#define ADOPT_REGION 0x1000000ull
#define ADOPT_RING 0x200000ull
#define ADOPT_BUFFERS 0x400000ull
#define ADOPT_PAGES 2048u
#define ADOPT_BUFFERS_IOVA 0x40000000ull
#define ADOPT_READ_ONLY 0xc00000ull
#define ADOPT_READ_ONLY_IOVA 0x7fe0000000ull
#define ADOPT_DESCRIPTORS 32768u
#define ADOPT_BUFFER 256u

/// Where page `index` of the buffers, as the device sees them, is in the region.
static inline uint64_t adopt_page_offset(uint32_t index) {
  return ADOPT_BUFFERS + (index * 1201u + 7u) % ADOPT_PAGES * 4096ull;
}

/// Read by the host.
enum { ADOPT_RUNNING = 1, ADOPT_HELD, ADOPT_LEAVING, ADOPT_REGISTERED, ADOPT_THAWING, ADOPT_DONE };
struct mailbox {
  char magic[8];  ///< "HFMAILB" and the number of the dax device
  uint64_t phase;
  uint64_t region;   ///< physical address of the region
  uint64_t context;  ///< physical address of the device's context entry, 0 before it is held
};

/// Puts one more group into the container. Returns 0 or errno.
int adopt_join(const struct vfio_device* vfio, struct vfio_device* joining, const char* bdf);
/// Opens container and group, and sets the container's type. Ends the program on an error.
void adopt_open(struct vfio_device* vfio, const char* bdf, int type);
/// The same, returning errno and closing what it opened.
int adopt_try_open(struct vfio_device* vfio, const char* bdf, int type);
/// The device descriptor.
int adopt_device(const struct vfio_device* vfio);
/// MAP_DMA. Returns 0 or errno.
int adopt_map(const struct vfio_device* vfio, uint64_t iova, void* memory, uint64_t size,
              uint32_t access, uint32_t flags);
/// UNMAP_DMA with FORGET. Returns 0 or errno.
int adopt_forget(const struct vfio_device* vfio, uint64_t iova, uint64_t size);
/// Every mapping of the layout, `base` bytes further up in the device's view.
void adopt_map_all(const struct vfio_device* vfio, uint8_t* memory, uint64_t base, uint32_t flags);
/// The same, but buffers from the ADOPT_BEHIND-th on in other memory, to be left behind.
#define ADOPT_BEHIND 8192u
void adopt_map_behind(const struct vfio_device* vfio, uint8_t* memory, uint8_t* other);
/// Returns 0 or the first errno.
int adopt_unmap_all(const struct vfio_device* vfio, uint64_t base);
struct adopt_preserve adopt_preserve(const struct vfio_device* vfio, uint32_t op);

/// Resets the e1000e and gives it every descriptor of the ring: 32767 frames fit, unattended.
void adopt_ring_start(const struct vfio_device* vfio, uint8_t* memory);
/// The same with what was mapped `base` bytes further up.
void adopt_ring_start_at(const struct vfio_device* vfio, uint8_t* memory, uint64_t base);
/// Stops reception; writes no memory.
void adopt_ring_stop(const struct vfio_device* vfio);
/// Frames that arrived since the ring was started.
uint32_t adopt_frames(const uint8_t* memory);
/// Waits up to 20 s until there are so many. Returns 0, or 1 if there are not.
int adopt_wait_frames(const uint8_t* memory, uint32_t frames);

/// Sets up MSI-X vector 0 with an eventfd, which is returned; the device is not told to use it.
int adopt_interrupt(const struct vfio_device* vfio);
/// The same with the first `count` vectors, at most ADOPT_VECTORS.
void adopt_vectors(const struct vfio_device* vfio, int* events, uint32_t count);
#define ADOPT_VECTORS 5u
/// Whether the device has leave to raise anything; whether the function has (sysfs, not vfio's
/// view).
int adopt_interrupt_is_on(const struct vfio_device* vfio);
int adopt_intx_is_on(const char* bdf);
/// Resets what the device's group shares a bus with. Returns 0 or errno; ENODEV where it could not
/// be reset alone.
int adopt_hot_reset(const struct vfio_device* vfio);
/// Whether the NIC is as it comes out of a reset: the length of its ring is forgotten. Nobody may
/// have it open.
int adopt_is_reset(const char* bdf);
/// Has every received frame raise vector 0, or no longer.
void adopt_interrupt_on(const struct vfio_device* vfio);
void adopt_interrupt_off(const struct vfio_device* vfio);
/// Waits up to so many milliseconds for the eventfd; returns and clears its count, 0 if nothing
/// came.
uint64_t adopt_interrupts(int event, int timeout_ms);

/// `dax` is /dev/daxN.0; the host tells several mailboxes by N.
void adopt_mailbox_start(struct mailbox* mailbox, const char* dax);
void adopt_phase(struct mailbox* mailbox, uint64_t phase);
/// Prints what came out; ends the program if it is not what was wanted (errno, or 0).
void adopt_expect(const char* what, int got, int wanted);
/// Notes where the device's context entry is, as the kernel says.
void adopt_note_context(struct mailbox* mailbox, const char* bdf);
/// The top table of the device's domain, as the kernel prints it.
void adopt_root(const char* bdf, char* root, size_t size);

#endif
