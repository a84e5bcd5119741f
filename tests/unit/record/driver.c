/* A user-space driver as anybody writes it: VFIO type1, nothing else. It does what it is told on
 * standard input, a word a line, and says what came of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int container = -1, group = -1, device = -1;
static char* memory;

static void say(int status) {
  if (status >= 0)
    printf("ok\n");
  else
    printf("errno %d\n", errno);
  fflush(stdout);
}

static int open_all(const char* number, const char* bdf) {
  char path[64];
  snprintf(path, sizeof path, "/dev/vfio/%s", number);
  container = open("/dev/vfio/vfio", O_RDWR);
  group = open(path, O_RDWR);
  if (container < 0 || group < 0) return -1;
  if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) != 0) return -1;
  if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) != 0) return -1;
  device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
  return device;
}

static int close_all(void) {
  int status = close(device);
  status |= close(group);
  return status | close(container);
}

/* The same through iommufd, as its header of Linux 7.3 has it. */
struct ioas_alloc {
  uint32_t size, flags, out;
};
struct ioas_map {
  uint32_t size, flags, ioas;
  int32_t fd;
  uint64_t start, length, iova;
};
struct ioas_unmap {
  uint32_t size, ioas;
  uint64_t iova, length;
};
struct ioas_copy {
  uint32_t size, flags, to, from;
  uint64_t length, to_iova, from_iova;
};
struct destroy {
  uint32_t size, id;
};
struct bind {
  uint32_t size, flags;
  int32_t iommufd;
  uint32_t out;
};
struct attach {
  uint32_t size, flags, to;
};
enum { kDestroy = 0x3b80, kAlloc, kCopy = 0x3b83, kMap = 0x3b85, kUnmap, kMapFile = 0x3b8f };
enum { kBind = 0x3b76, kAttach };
static int iommufd = -1, file = -1;
static uint32_t ioas;

static int open_iommufd(const char* number) {
  char path[64];
  snprintf(path, sizeof path, "/dev/vfio/devices/vfio%s", number);
  iommufd = open("/dev/iommu", O_RDWR);
  device = open(path, O_RDWR);
  struct ioas_alloc alloc = {sizeof alloc, 0, 0};
  struct bind bind = {sizeof bind, 0, iommufd, 0};
  if (iommufd < 0 || device < 0 || ioctl(iommufd, kAlloc, &alloc) != 0) return -1;
  ioas = alloc.out;
  struct attach attach = {sizeof attach, 0, ioas};
  return ioctl(device, kBind, &bind) != 0 ? -1 : ioctl(device, kAttach, &attach);
}

static int map_ioas(unsigned long iova, unsigned long size, unsigned long offset) {
  struct ioas_map map = {sizeof map, 7, ioas, 0, (unsigned long)memory + offset, size, iova};
  return ioctl(iommufd, kMap, &map);
}

static int map_ioas_file(unsigned long iova, unsigned long size, unsigned long offset) {
  struct ioas_map map = {sizeof map, 7, ioas, file, offset, size, iova};
  return ioctl(iommufd, kMapFile, &map);
}

static int unmap_ioas(unsigned long iova, unsigned long size) {
  struct ioas_unmap unmap = {sizeof unmap, ioas, iova, size};
  return ioctl(iommufd, kUnmap, &unmap);
}

static int copy_ioas(void) {
  struct ioas_copy copy = {sizeof copy, 7, ioas, ioas, 0x1000, 0x900000, 0x100000};
  return ioctl(iommufd, kCopy, &copy);
}

static int destroy_ioas(void) {
  struct destroy destroy = {sizeof destroy, ioas};
  return ioctl(iommufd, kDestroy, &destroy);
}

static int use_file(const char* path, size_t size) {
  const int fd = open(path, O_RDWR);
  memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  return memory == MAP_FAILED ? -1 : 0;
}

/* More areas than anybody has room for at once. */
static int scatter(unsigned long count) {
  for (unsigned long i = 0; i < count; ++i)
    if (mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) return -1;
  return 0;
}

static int use_own(size_t size) {
  memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? -1 : 0;
}

/* A file of which nothing is left but what is mapped, with memory of one's own in its middle. */
static int use_mixed(const char* path) {
  const int fd = open(path, O_RDWR);
  memory = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  const void* hole = mmap(memory + 4096, 4096, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  return hole == MAP_FAILED ? -1 : 0;
}

static int map_at(int fd, unsigned long iova, unsigned long size, unsigned long offset) {
  struct vfio_iommu_type1_dma_map map = {sizeof map, 3, (unsigned long)memory + offset, iova, size};
  return ioctl(fd, VFIO_IOMMU_MAP_DMA, &map);
}

static int unmap_at(int fd, unsigned long iova, unsigned long size) {
  struct vfio_iommu_type1_dma_unmap unmap = {sizeof unmap, 0, iova, size};
  return ioctl(fd, VFIO_IOMMU_UNMAP_DMA, &unmap);
}

static int rounds;

/* Every thread maps and unmaps the same IOVA, each with memory of its own. */
static void* hammer(void* number) {
  const unsigned long mine = (unsigned long)number;
  for (int i = 0; i < rounds; ++i) {
    map_at(container, 0x100000, 0x1000, 0x10000 + mine * 0x1000);
    if (i + 1 < rounds || mine % 2) unmap_at(container, 0x100000, 0x1000);
  }
  return NULL;
}

static int hammer_all(int count) {
  pthread_t threads[4];
  rounds = count;
  for (unsigned long i = 0; i < 4; ++i) pthread_create(&threads[i], NULL, hammer, (void*)i);
  for (int i = 0; i < 4; ++i) pthread_join(threads[i], NULL);
  return 0;
}

/* Nanoseconds for each of `count` maps; unmapped again. */
static void time_maps(unsigned long count) {
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  for (unsigned long i = 0; i < count; ++i)
    if (map_at(container, 0x10000000 + i * 0x1000, 0x1000, 0) != 0) {
      say(-1);
      return;
    }
  clock_gettime(CLOCK_MONOTONIC, &to);
  for (unsigned long i = 0; i < count; ++i) unmap_at(container, 0x10000000 + i * 0x1000, 0x1000);
  const double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
  printf("ns %.1f\n", ns / (double)count);
  fflush(stdout);
}

static int map_in_child(unsigned long iova, unsigned long size, unsigned long offset) {
  const pid_t child = fork();
  if (child == 0) _exit(map_at(container, iova, size, offset) == 0 ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  return status == 0 ? 0 : -1;
}

/* Children, each of which maps memory while other threads of the parent do nothing else. */
static volatile int over;
static void* map_memory(void* nothing) {
  while (!over) {
    void* page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page, 4096);
  }
  return nothing;
}

static int fork_under_load(int count) {
  pthread_t threads[3];
  over = 0;
  for (int i = 0; i < 3; ++i) pthread_create(&threads[i], NULL, map_memory, NULL);
  int status = 0;
  for (int i = 0; i < count && status == 0; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(10);
      void* page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      munmap(page, 4096);
      _exit(map_at(container, 0x700000, 0x1000, 0) | unmap_at(container, 0x700000, 0x1000));
    }
    waitpid(child, &status, 0);
  }
  over = 1;
  for (int i = 0; i < 3; ++i) pthread_join(threads[i], NULL);
  return status == 0 ? 0 : -1;
}

/* A child that lives on as long as its parent. */
static int fork_and_stay(void) {
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child != 0) return child > 0 ? 0 : -1;
  while (getppid() == parent) usleep(10000);
  _exit(0);
}

static void* last_words(void* nothing) {
  usleep(100000);
  say(0);
  return nothing;
}

/* The child goes on with what the parent opened; the parent has closed its own, and is gone. */
static void become_child(void) {
  const pid_t parent = getpid();
  if (fork() != 0) {
    close_all();
    _exit(0);
  }
  while (getppid() == parent) usleep(1000);
}

/* Memory of the program's file, which is copied when it is written to. */
static char data[0x4000] __attribute__((aligned(4096))) = "data";
static int use_data(void) {
  memory = data;
  return 0;
}

/* Whatever is open but the standard ones, as a shell's child does. */
static int spawn(void) {
  return system("true");
}

int main(int argc, char** argv) {
  if (argc == 4) {
    container = atoi(argv[1]);
    group = atoi(argv[2]);
    device = atoi(argv[3]);
    say(0);
  }
  char line[256], text[128], other[64];
  unsigned long a = 0, b = 0, c = 0;
  while (fgets(line, sizeof line, stdin) != NULL) {
    errno = 0;
    if (sscanf(line, "open %63s %63s", text, other) == 2)
      say(open_all(text, other));
    else if (sscanf(line, "iommufd %63s", text) == 1)
      say(open_iommufd(text));
    else if (sscanf(line, "ioas-file %127s", text) == 1)
      say(file = open(text, O_RDWR));
    else if (sscanf(line, "ioas-map %lx %lx %lx", &a, &b, &c) == 3)
      say(map_ioas(a, b, c));
    else if (sscanf(line, "ioas-map-file %lx %lx %lx", &a, &b, &c) == 3)
      say(map_ioas_file(a, b, c));
    else if (sscanf(line, "ioas-unmap %lx %lx", &a, &b) == 2)
      say(unmap_ioas(a, b));
    else if (strcmp(line, "ioas-copy\n") == 0)
      say(copy_ioas());
    else if (strcmp(line, "ioas-destroy\n") == 0)
      say(destroy_ioas());
    else if (strcmp(line, "ioas-close\n") == 0)
      say(close(iommufd) | close(device));
    else if (strcmp(line, "close\n") == 0)
      say(close_all());
    else if (strcmp(line, "close-device\n") == 0)
      say(close(device));
    else if (sscanf(line, "file %127s %lx", text, &a) == 2)
      say(use_file(text, a));
    else if (sscanf(line, "scatter %lx", &a) == 1)
      say(scatter(a));
    else if (sscanf(line, "own %lx", &a) == 1)
      say(use_own(a));
    else if (sscanf(line, "mixed %127s", text) == 1)
      say(use_mixed(text));
    else if (sscanf(line, "map %lx %lx %lx", &a, &b, &c) == 3)
      say(map_at(container, a, b, c));
    else if (sscanf(line, "dup-map %lx %lx %lx", &a, &b, &c) == 3)
      say(map_at(dup(container), a, b, c));
    else if (sscanf(line, "unmap %lx %lx", &a, &b) == 2)
      say(unmap_at(container, a, b));
    else if (sscanf(line, "hammer %lx", &a) == 1)
      say(hammer_all((int)a));
    else if (sscanf(line, "time-maps %lx", &a) == 1)
      time_maps(a);
    else if (sscanf(line, "fork-map %lx %lx %lx", &a, &b, &c) == 3)
      say(map_in_child(a, b, c));
    else if (sscanf(line, "fork-under-load %lx", &a) == 1)
      say(fork_under_load((int)a));
    else if (strcmp(line, "fork-and-stay\n") == 0)
      say(fork_and_stay());
    else if (strcmp(line, "end-with-thread\n") == 0) {
      pthread_t thread;
      pthread_create(&thread, NULL, last_words, NULL);
      pthread_detach(thread);
      pthread_exit(NULL);
    } else if (strcmp(line, "become-child\n") == 0)
      become_child(), say(0);
    else if (strcmp(line, "spawn\n") == 0)
      say(spawn());
    else if (strcmp(line, "close-others\n") == 0) {
      for (int fd = 200; fd < 70000; ++fd) close(fd);
      say(close_range(200, ~0u, 0));
    } else if (strcmp(line, "data\n") == 0)
      say(use_data());
    else if (strcmp(line, "reuse-number\n") == 0)
      say(dup2(container, group));
    else if (sscanf(line, "exec %127s", text) == 1) {
      char numbers[3][16];
      snprintf(numbers[0], 16, "%d", container);
      snprintf(numbers[1], 16, "%d", group);
      snprintf(numbers[2], 16, "%d", device);
      execl(text, text, numbers[0], numbers[1], numbers[2], NULL);
      say(-1);
    } else
      printf("what?\n"), fflush(stdout);
  }
  return 7;
}
