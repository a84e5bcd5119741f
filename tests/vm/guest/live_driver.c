// A driver on libholdfast whose device needs nobody: it opts in, maps, starts a receive ring that
// the host fills (guest/adopt.h) and waits to be killed. What continues the ring in the next kernel
// is examples/adopt-driver.
//
//   live_driver BDF DAX CONTAINER REGION [plain|scale]
//
//     plain: does not opt in; scale: fills the container up to 65 535 mappings, 1.2 GiB in 4 KiB
//     pages, and says how long the kernel took to map them
//
// Obeys lines on standard input: "SERIAL map" maps and unmaps one page through the library, "SERIAL
// behind" maps memory of this process, to be left behind, and leaves it.

#include <errno.h>
#include <fcntl.h>
#include <holdfast.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "adopt.h"
#include "vfio.h"

#define EXTRA_IOVA 0x200000000ull
#define EXTRA_OFFSET 0xe00000ull

// With the ring, the buffers and what is read only: 65 535.
#define SCALE_MAPPINGS (65535u - ADOPT_PAGES - 2)
#define SCALE_SIZE 0x5000ull
#define SCALE_IOVA 0x100000000ull

static hf_connection* connection;
static hf_container* container;
static hf_memory* memory;
static uint8_t* view;

static void refused(const char* what, const hf_error* error) {
  errno = error->sys_errno;
  die("%s: %s %s: %s", what, error->code, error->object, error->cause);
}

static int open_node(const char* path) {
  int node = open(path, O_RDWR | O_CLOEXEC);
  if (node < 0) die("%s", path);
  return node;
}

// Container and group, the IOMMU's type not chosen yet.
static void open_group(struct vfio_device* vfio, const char* bdf) {
  char path[128];
  vfio_group_path(bdf, path, sizeof path);
  snprintf(vfio->bdf, sizeof vfio->bdf, "%.15s", bdf);
  vfio->container = open_node("/dev/vfio/vfio");
  vfio->group = open_node(path);
  if (ioctl(vfio->group, VFIO_GROUP_SET_CONTAINER, &vfio->container)) die("SET_CONTAINER");
}

static void map_one(uint64_t iova, uint64_t offset, uint64_t size, uint32_t access) {
  hf_error error;
  const hf_mapping mapping = {
      .iova = iova, .size = size, .offset = offset, .memory = memory, .access = access};
  if (hf_map(container, &mapping, view + offset, &error)) refused("map", &error);
}

static void set_up(const struct vfio_device* vfio, char** argv, int plain, int dax) {
  hf_error error;
  const hf_connect_options connect = {.size = sizeof connect};
  if (hf_connect(&connect, &connection, &error)) refused("connect", &error);
  const hf_container_options options = {.size = sizeof options,
                                        .name = argv[3],
                                        .kind = plain ? HF_KIND_TYPE1 : HF_KIND_TYPE1_PRESERVED,
                                        .fd = vfio->container};
  if (hf_register_container(connection, &options, &container, &error))
    refused("register container", &error);
  if (hf_register_device(container, argv[1], vfio->group, vfio->device, 0, &error))
    refused("register device", &error);
  if (hf_register_memory(connection, argv[4], dax, argv[2], &memory, &error))
    refused("register memory", &error);
  map_one(0, ADOPT_RING, 0x200000, HF_READ | HF_WRITE);
  for (uint32_t i = 0; i < ADOPT_PAGES; i++)
    map_one(ADOPT_BUFFERS_IOVA + i * 4096ull, adopt_page_offset(i), 4096, HF_READ | HF_WRITE);
  map_one(ADOPT_READ_ONLY_IOVA, ADOPT_READ_ONLY, 0x200000, HF_READ);
}

static void map_scale(void) {
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (uint64_t i = 0; i < SCALE_MAPPINGS; i++)
    map_one(SCALE_IOVA + i * SCALE_SIZE, i * 7 % 800 * SCALE_SIZE, SCALE_SIZE, HF_READ | HF_WRITE);
  clock_gettime(CLOCK_MONOTONIC, &end);
  printf("scale: mappings %u bytes %llu map_ns %llu\n", SCALE_MAPPINGS,
         (unsigned long long)(SCALE_MAPPINGS * SCALE_SIZE),
         (unsigned long long)(end.tv_sec - begin.tv_sec) * 1000000000ull +
             (unsigned long long)end.tv_nsec - (unsigned long long)begin.tv_nsec);
}

static void command_map(const char* serial) {
  hf_error error = {0};
  const hf_mapping mapping = {.iova = EXTRA_IOVA,
                              .size = 0x1000,
                              .offset = EXTRA_OFFSET,
                              .memory = memory,
                              .access = HF_READ};
  int status = hf_map(container, &mapping, view + EXTRA_OFFSET, &error);
  if (!status) status = hf_unmap(container, EXTRA_IOVA, 0x1000, NULL, &error);
  if (status)
    printf("%s no errno=%d code=%s %s\n", serial, -status, error.code, error.cause);
  else
    printf("%s ok mapped and unmapped\n", serial);
}

// The next kernel may hand this memory out: without the flag it is refused.
static void command_behind(const char* serial) {
  hf_error error = {0};
  hf_mapping mapping = {
      .iova = EXTRA_IOVA, .size = 0x4000, .memory = memory, .access = HF_READ | HF_WRITE};
  void* own = mmap(NULL, mapping.size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (own == MAP_FAILED) die("anonymous memory");
  if (hf_map(container, &mapping, own, &error) != -EXDEV) {
    printf("%s no it is not refused without the flag: %s\n", serial, error.cause);
    return;
  }
  mapping.memory = NULL;
  mapping.access |= HF_LEAVE_BEHIND;
  if (hf_map(container, &mapping, own, &error))
    printf("%s no code=%s %s\n", serial, error.code, error.cause);
  else
    printf("%s ok mapped, to be left behind\n", serial);
}

int main(int argc, char** argv) {
  struct vfio_device vfio;
  hf_error error;
  int dax;
  errno = 0;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc < 5) die("usage: live_driver BDF DAX CONTAINER REGION [plain|scale]");
  const int plain = argc > 5 && strcmp(argv[5], "plain") == 0;
  view = map_region(argv[2], ADOPT_REGION, &dax);
  struct mailbox* mailbox = (struct mailbox*)view;
  adopt_mailbox_start(mailbox, argv[2]);
  open_group(&vfio, argv[1]);
  if (plain) {
    if (ioctl(vfio.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)) die("SET_IOMMU");
  } else if (hf_opt_in(vfio.container, &error)) {
    refused("opt in", &error);
  }
  vfio.device = adopt_device(&vfio);
  set_up(&vfio, argv, plain, dax);
  if (argc > 5 && strcmp(argv[5], "scale") == 0) map_scale();
  adopt_ring_start(&vfio, view);
  __atomic_store_n(&mailbox->phase, ADOPT_RUNNING, __ATOMIC_SEQ_CST);
  if (adopt_wait_frames(view, 300)) die("no frames arrive");
  if (!plain) adopt_note_context(mailbox, argv[1]);
  printf("ready: %u frames\n", adopt_frames(view));
  struct pollfd waits[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                           {.fd = hf_event_fd(connection), .events = POLLIN}};
  for (;;) {
    char line[128] = "";
    if (poll(waits, 2, -1) < 0 && errno != EINTR) die("poll");
    if (waits[1].revents && hf_dispatch(connection, &error) < 0) refused("events", &error);
    if (!waits[0].revents) continue;
    if (!fgets(line, sizeof line, stdin)) return 0;
    char* rest = line;
    const char* serial = strsep(&rest, " \n");
    if (rest && strncmp(rest, "behind", 6) == 0)
      command_behind(serial);
    else
      command_map(serial);
  }
}
