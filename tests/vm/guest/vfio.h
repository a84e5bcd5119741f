#ifndef HOLDFAST_VM_VFIO_H
#define HOLDFAST_VM_VFIO_H

// The few VFIO calls that a small user-space driver makes (linux/vfio.h). Errors end the program
// with a message: a driver in a test has nothing better to do.

#include <stddef.h>
#include <stdint.h>

/// The three descriptors that a type1 driver holds; owned by whoever fills it in.
struct vfio_device {
  int container;
  int group;
  int device;
  char bdf[16];
};

/// Prints "PROGRAM: text: strerror(errno)" (errno 0: without it) and exits 1.
__attribute__((noreturn, format(printf, 1, 2))) void die(const char* format, ...);

/// Where the group of this device is opened, /dev/vfio/N. Ends the program if it has none.
void vfio_group_path(const char* bdf, char* path, size_t size);
/// Opens container, group and device of a function bound to vfio-pci, type1v2.
void vfio_open(struct vfio_device* vfio, const char* bdf);
/// Maps `size` bytes at `memory` to `iova`, read and write. Returns 0 or errno.
int vfio_map(const struct vfio_device* vfio, uint64_t iova, void* memory, uint64_t size);
/// Removes exactly this range. Returns 0 or errno.
int vfio_unmap(const struct vfio_device* vfio, uint64_t iova, uint64_t size);
/// BAR 0, mapped; `size` receives its length in bytes.
volatile void* vfio_map_bar0(const struct vfio_device* vfio, size_t* size);
/// A 16-bit register of the device's config space. Reading ends the program on an error, writing
/// returns 0 or errno.
uint16_t vfio_config_read(const struct vfio_device* vfio, uint32_t at);
int vfio_config_write(const struct vfio_device* vfio, uint32_t at, uint16_t value);
/// Where this capability of the device is (PCI_CAP_ID_...). Ends the program if it has none.
uint32_t vfio_capability(const struct vfio_device* vfio, uint8_t id);
/// Config space as it really is (sysfs), not as VFIO shows it: a descriptor, and a 16-bit register
/// of it.
int vfio_real_config(const char* bdf);
uint16_t vfio_real_register(int config, uint32_t at);
/// Switches memory decoding and bus mastering on (or bus mastering off) in the command register.
void vfio_bus_master(const struct vfio_device* vfio, int on);

/// One range of the region as the device sees it.
struct window {
  uint64_t iova;    ///< bytes
  uint64_t offset;  ///< in the region, bytes
  uint64_t size;    ///< bytes
};

/// What both drivers map: IOVA 0 is used, the order is turned over, IOVAs are memory addresses too,
/// and one lies just below the 39 bits that the emulated IOMMU has. A translation that is off, or
/// straight through, cannot go unnoticed.
#define WINDOW_COUNT 4
extern const struct window kWindows[WINDOW_COUNT];
/// Bytes of the region that the windows cover, from offset 0.
#define WINDOWS_BYTES 0x800000ull

/// Where an offset of the region is in the device's view.
uint64_t iova_of(uint64_t offset);

/// The record at the start of the region by which a later kernel knows what it is looking at.
struct keepsake {
  char magic[8];      ///< "HFKEEP01"
  char boot_id[40];   ///< of the kernel under which it was written
  char driver[16];    ///< "edu", "e1000e"
  uint64_t seed;      ///< of the pattern
  uint64_t sequence;  ///< last transfer that was checked
};

/// /proc/sys/kernel/random/boot_id, without the newline.
void read_boot_id(char out[40]);
/// A 64-bit word of the pattern: depends on seed and position only.
uint64_t pattern_word(uint64_t seed, uint64_t index);
void pattern_fill(void* memory, uint64_t bytes, uint64_t seed, uint64_t position);
/// Bytes that differ from the pattern.
uint64_t pattern_check(const void* memory, uint64_t bytes, uint64_t seed, uint64_t position);

/// Opens a devdax device and maps `bytes` of it, aligned to 2 MiB.
void* map_region(const char* path, uint64_t bytes, int* descriptor);

#endif
