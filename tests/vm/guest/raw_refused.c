// Opting in, where it must be refused, on the patched kernel without Holdfast.
//
//   raw_refused optin BDF ERRNO [PF]   a container that opts in is refused with this errno; a plain
//                                      one with the same device maps, opens it, and unmaps. PF: BDF
//                                      is a virtual function of this one
//   raw_refused member BDF ERRNO       the group's answer to a container that opts in and to a
//   plain
//                                      one; none: both take it
//   raw_refused user BDF DAX           as uid 1000: no hold, no thaw, no taking up what is held,
//   and
//                                      nothing to be read of what is preserved; the device goes on

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "adopt.h"
#include "vfio.h"

#define USER 1000
#define TOKEN "6f1a7c52-53c1-4a4e-8e5f-3d9c9a1f2b40"

static const struct {
  const char* name;
  int number;
} kErrnos[] = {{"EOPNOTSUPP", EOPNOTSUPP}, {"EPERM", EPERM},   {"EBUSY", EBUSY},
               {"EINVAL", EINVAL},         {"ENODEV", ENODEV}, {"none", 0}};

static int errno_of(const char* name) {
  for (size_t i = 0; i < sizeof kErrnos / sizeof kErrnos[0]; i++)
    if (strcmp(kErrnos[i].name, name) == 0) return kErrnos[i].number;
  errno = 0;
  die("unknown errno %s", name);
}

// Opens a physical function and gives it the token that whoever opens its virtual ones must show.
static void open_physical(const char* bdf) {
  static const uint8_t token[16] = {0x6f, 0x1a, 0x7c, 0x52, 0x53, 0xc1, 0x4a, 0x4e,
                                    0x8e, 0x5f, 0x3d, 0x9c, 0x9a, 0x1f, 0x2b, 0x40};
  char space[sizeof(struct vfio_device_feature) + sizeof token] __attribute__((aligned(8)));
  struct vfio_device_feature* feature = (struct vfio_device_feature*)space;
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, VFIO_TYPE1v2_IOMMU);
  vfio.device = adopt_device(&vfio);
  feature->argsz = sizeof space;
  feature->flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
  memcpy(feature->data, token, sizeof token);
  if (ioctl(vfio.device, VFIO_DEVICE_FEATURE, feature)) die("the token of %s", bdf);
}

static int optin(const char* bdf, int wanted, const char* physical) {
  struct vfio_device vfio;
  char name[128];
  adopt_expect("a container that opts in", adopt_try_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED),
               wanted);
  if (physical) open_physical(physical);
  adopt_open(&vfio, bdf, VFIO_TYPE1v2_IOMMU);
  snprintf(name, sizeof name, physical ? "%s vf_token=" TOKEN : "%s", bdf);
  vfio.device = ioctl(vfio.group, VFIO_GROUP_GET_DEVICE_FD, name);
  if (vfio.device < 0) die("GET_DEVICE_FD %s", name);
  void* memory = mmap(NULL, 0x200000, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) die("anonymous memory");
  adopt_expect("map in a plain container", vfio_map(&vfio, 0x40000000, memory, 0x200000), 0);
  adopt_expect("and its opt-in flags",
               adopt_map(&vfio, 0x80000000, memory, 0x1000, ADOPT_RW, ADOPT_LEAVE_BEHIND), EINVAL);
  adopt_expect("unmap", vfio_unmap(&vfio, 0x40000000, 0x200000), 0);
  return 0;
}

static void try_one(const char* what, const char* bdf, int type, int wanted) {
  struct vfio_device vfio;
  adopt_expect(what, adopt_try_open(&vfio, bdf, type), wanted);
  if (wanted) return;
  close(vfio.group);
  close(vfio.container);
}

static int member(const char* bdf, int wanted) {
  try_one("a container that opts in", bdf, ADOPT_TYPE1V2_PRESERVED, wanted);
  try_one("a plain one", bdf, VFIO_TYPE1v2_IOMMU, wanted);
  return 0;
}

static void become_user(void) {
  if (setgroups(0, NULL) || setgid(USER) || setuid(USER)) die("uid %d", USER);
  errno = 0;
  if (setuid(0) == 0) die("root again");
}

// Runs one part of the story as an ordinary user; its failure is ours.
static void as_user(void (*part)(const struct vfio_device*), const struct vfio_device* vfio) {
  int status;
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    become_user();
    part(vfio);
    exit(0);
  }
  if (child < 0 || waitpid(child, &status, 0) != child) die("fork");
  errno = 0;
  if (status != 0) die("uid %d could do what it must not", USER);
}

static int preserve(const struct vfio_device* vfio, uint32_t op) {
  struct adopt_preserve call = {.argsz = sizeof call, .op = op};
  return ioctl(vfio->container, ADOPT_PRESERVE, &call) ? errno : 0;
}

static void no_hold(const struct vfio_device* vfio) {
  adopt_expect("uid 1000: query", preserve(vfio, ADOPT_QUERY), 0);
  adopt_expect("uid 1000: hold", preserve(vfio, ADOPT_HOLD), EPERM);
}

static void no_thaw(const struct vfio_device* vfio) {
  adopt_expect("uid 1000: thaw", preserve(vfio, ADOPT_THAW), EPERM);
}

static void no_taking_up(const struct vfio_device* vfio) {
  static const struct {
    const char* name;
    int how;
  } kFiles[] = {{"domains", O_RDONLY},   {"pool", O_RDONLY}, {"pool_used", O_RDONLY},
                {"pool_base", O_RDONLY}, {"abi", O_RDONLY},  {"release", O_WRONLY}};
  struct vfio_device other;
  adopt_expect("uid 1000: a container that opts in takes up what is held",
               adopt_try_open(&other, vfio->bdf, ADOPT_TYPE1V2_PRESERVED), EPERM);
  for (size_t i = 0; i < sizeof kFiles / sizeof kFiles[0]; i++) {
    char path[128], what[64];
    snprintf(path, sizeof path, "/sys/kernel/iommu_preserve/%s", kFiles[i].name);
    snprintf(what, sizeof what, "uid 1000: %s", kFiles[i].name);
    int fd = open(path, kFiles[i].how | O_CLOEXEC);
    adopt_expect(what, fd < 0 ? errno : 0, EACCES);
  }
}

// The group's node is the user's, as where an administrator has given a device away.
static void give_group(const char* bdf) {
  char path[128];
  vfio_group_path(bdf, path, sizeof path);
  if (chmod(path, 0666) || chmod("/dev/vfio/vfio", 0666)) die("chmod %s", path);
}

// Ends with the process: nobody has a descriptor of it then, nor a mapping of the device.
static void hold_and_leave(const char* bdf, struct mailbox* mailbox, uint8_t* memory) {
  struct vfio_device vfio;
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  vfio.device = adopt_device(&vfio);
  adopt_map_all(&vfio, memory, 0, 0);
  adopt_ring_start(&vfio, memory);
  adopt_phase(mailbox, ADOPT_RUNNING);
  as_user(no_hold, &vfio);
  errno = preserve(&vfio, ADOPT_HOLD);
  if (errno) die("root: hold");
  adopt_note_context(mailbox, bdf);
  adopt_phase(mailbox, ADOPT_HELD);
  as_user(no_thaw, &vfio);
  exit(0);
}

static int user(const char* bdf, const char* dax) {
  struct vfio_device vfio;
  int fd, status;
  uint8_t* memory = map_region(dax, ADOPT_REGION, &fd);
  struct mailbox* mailbox = (struct mailbox*)memory;
  adopt_mailbox_start(mailbox, dax);
  give_group(bdf);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) hold_and_leave(bdf, mailbox, memory);
  if (child < 0 || waitpid(child, &status, 0) != child) die("fork");
  errno = 0;
  if (status != 0) die("it was not held");
  adopt_phase(mailbox, ADOPT_LEAVING);
  snprintf(vfio.bdf, sizeof vfio.bdf, "%s", bdf);
  as_user(no_taking_up, &vfio);
  if (adopt_wait_frames(memory, adopt_frames(memory) + 2500)) die("no frames arrive any more");
  adopt_open(&vfio, bdf, ADOPT_TYPE1V2_PRESERVED);
  adopt_map_all(&vfio, memory, 0, ADOPT_LIVE_UPDATE);
  vfio.device = adopt_device(&vfio);
  adopt_phase(mailbox, ADOPT_REGISTERED);
  if (adopt_wait_frames(memory, adopt_frames(memory) + 300)) die("no frames arrive any more");
  adopt_phase(mailbox, ADOPT_THAWING);
  adopt_expect("root: thaw", preserve(&vfio, ADOPT_THAW), 0);
  adopt_phase(mailbox, ADOPT_DONE);
  adopt_ring_stop(&vfio);
  adopt_expect("unmap", adopt_unmap_all(&vfio, 0), 0);
  return 0;
}

int main(int argc, char** argv) {
  errno = 0;
  if (argc < 4) die("usage: raw_refused optin|member BDF ERRNO [PF] | user BDF DAX");
  if (strcmp(argv[1], "optin") == 0)
    return optin(argv[2], errno_of(argv[3]), argc > 4 ? argv[4] : NULL);
  if (strcmp(argv[1], "member") == 0) return member(argv[2], errno_of(argv[3]));
  if (strcmp(argv[1], "user") == 0) return user(argv[2], argv[3]);
  die("unknown word %s", argv[1]);
}
