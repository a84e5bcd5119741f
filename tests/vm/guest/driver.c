#include "driver.h"

#include <errno.h>
#include <fcntl.h>
#include <holdfast.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXTRA_IOVA 0x200000000ull   // mapped and unmapped again by the command "map"
#define SECOND_IOVA 0x300000000ull  // where the command "region" maps further memory
#define HUGE_PAGE 0x200000ull
#define STILL_BEGIN 0x1000ull  // this part of the first window holds a pattern that nobody writes
#define STILL_END HUGE_PAGE

struct driver {
  const struct device_model* model;
  struct vfio_device vfio;
  hf_connection* connection;
  hf_container* container;
  hf_memory* memory;
  uint8_t* view;  // WINDOWS_BYTES + one huge page of the region
  struct keepsake* keepsake;
  int quiet;  // quiesced: the device does nothing
  uint64_t transfers, wrong;
  char found[160], device[160];  // verdicts of the take, "ok ..." or "no ..."
};

static void refused(const char* what, const hf_error* error) {
  errno = error->sys_errno;
  die("%s: %s %s: %s", what, error->code, error->object, error->cause);
}

static void on_quiesce(void* user, hf_connection* connection, uint64_t freeze,
                       uint32_t timeout_ms) {
  struct driver* driver = user;
  (void)timeout_ms;
  // Transfers are waited for, so between two of them nothing is under way.
  driver->model->halt(driver->model->self, &driver->vfio);
  driver->quiet = 1;
  hf_quiesced(connection, freeze, 1, NULL);
}

static void on_thawed(void* user, hf_connection* connection, const char* why) {
  struct driver* driver = user;
  (void)connection;
  (void)why;
  if (driver->quiet) driver->model->start(driver->model->self, &driver->vfio, driver->view);
  driver->quiet = 0;
}

static void connect_to_agent(struct driver* driver) {
  hf_error error;
  const hf_callbacks callbacks = {
      .size = sizeof callbacks, .user = driver, .quiesce = on_quiesce, .thawed = on_thawed};
  const hf_connect_options options = {.size = sizeof options, .callbacks = &callbacks};
  if (hf_connect(&options, &driver->connection, &error)) refused("connect", &error);
}

static void open_and_register(struct driver* driver, char** argv, int consents) {
  hf_error error;
  int dax;
  driver->view = map_region(argv[3], WINDOWS_BYTES + HUGE_PAGE, &dax);
  driver->keepsake = (struct keepsake*)driver->view;
  vfio_open(&driver->vfio, argv[2]);
  connect_to_agent(driver);
  const hf_container_options options = {
      .size = sizeof options, .name = argv[4], .kind = HF_KIND_TYPE1, .fd = driver->vfio.container};
  if (hf_register_container(driver->connection, &options, &driver->container, &error))
    refused("register container", &error);
  if (hf_register_device(driver->container, argv[2], driver->vfio.group, driver->vfio.device,
                         consents ? HF_CONSENTS_TO_REINIT : 0, &error))
    refused("register device", &error);
  if (hf_register_memory(driver->connection, argv[5], dax, argv[3], &driver->memory, &error))
    refused("register memory", &error);
  for (int i = 0; i < WINDOW_COUNT; i++) {
    const hf_mapping mapping = {.iova = kWindows[i].iova,
                                .size = kWindows[i].size,
                                .offset = kWindows[i].offset,
                                .memory = driver->memory,
                                .access = HF_READ | HF_WRITE};
    if (hf_map(driver->container, &mapping, driver->view + kWindows[i].offset, &error))
      refused("map", &error);
  }
  memset(driver->keepsake, 0, sizeof *driver->keepsake);
  memcpy(driver->keepsake->magic, "HFKEEP01", 8);
  snprintf(driver->keepsake->driver, sizeof driver->keepsake->driver, "%s", driver->model->name);
  read_boot_id(driver->keepsake->boot_id);
  driver->keepsake->seed = pattern_word((uint64_t)getpid(), 1);
  pattern_fill(driver->view + STILL_BEGIN, STILL_END - STILL_BEGIN, driver->keepsake->seed,
               STILL_BEGIN);
}

// Whether an earlier kernel's driver left this memory, and all of it.
static void look_for_data(struct driver* driver) {
  const struct keepsake* keepsake = driver->keepsake;
  char boot_id[40];
  read_boot_id(boot_id);
  const char* wrong = NULL;
  if (memcmp(keepsake->magic, "HFKEEP01", 8))
    wrong = "no keepsake at the start of the region";
  else if (strcmp(keepsake->driver, driver->model->name))
    wrong = "the keepsake is another driver's";
  else if (!strncmp(keepsake->boot_id, boot_id, sizeof boot_id))
    wrong = "the keepsake was written in this boot";
  else if (keepsake->sequence == 0)
    wrong = "no transfer was made before";
  else if (pattern_check(driver->view + STILL_BEGIN, STILL_END - STILL_BEGIN, keepsake->seed,
                         STILL_BEGIN))
    wrong = "the pattern is damaged";
  if (wrong)
    snprintf(driver->found, sizeof driver->found, "no %s", wrong);
  else
    snprintf(driver->found, sizeof driver->found, "ok written_by=%.36s sequence=%llu",
             keepsake->boot_id, (unsigned long long)keepsake->sequence);
}

static void check_mappings(const hf_taken* taken, const struct driver* driver) {
  errno = 0;
  for (int i = 0; i < WINDOW_COUNT; i++) {
    size_t at = 0;
    while (at < taken->mapping_count && taken->mappings[at].iova != kWindows[i].iova) at++;
    if (at == taken->mapping_count)
      die("no mapping at iova 0x%llx was handed over", (unsigned long long)kWindows[i].iova);
    const hf_mapping* mapping = &taken->mappings[at];
    if (mapping->size != kWindows[i].size || mapping->offset != kWindows[i].offset ||
        mapping->memory != driver->memory)
      die("the mapping at iova 0x%llx is another one", (unsigned long long)kWindows[i].iova);
  }
}

static void take_back(struct driver* driver, char** argv) {
  hf_error error;
  hf_taken* taken;
  char text[128] = "";
  connect_to_agent(driver);
  if (hf_take(driver->connection, argv[3], HF_TAKE_CONFIRM_LATER, &taken, &error))
    refused("take", &error);
  errno = 0;
  if (taken->device_count != 1 || strcmp(taken->devices[0].bdf, argv[2]))
    die("the device handed over is not %s", argv[2]);
  driver->container = taken->container;
  driver->vfio.container = taken->container_fd;
  driver->vfio.group = taken->devices[0].group_fd;
  driver->vfio.device = taken->devices[0].device_fd;
  snprintf(driver->vfio.bdf, sizeof driver->vfio.bdf, "%.15s", argv[2]);
  size_t at = 0;
  while (at < taken->memory_count && strcmp(taken->memory[at].name, argv[4])) at++;
  if (at == taken->memory_count) die("no memory %s was handed over", argv[4]);
  driver->memory = taken->memory[at].memory;
  driver->view = mmap(NULL, WINDOWS_BYTES + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
                      taken->memory[at].fd, 0);
  if (driver->view == MAP_FAILED) die("mmap of %s", argv[4]);
  driver->keepsake = (struct keepsake*)driver->view;
  check_mappings(taken, driver);
  look_for_data(driver);
  int bad = driver->model->examine(driver->model->self, &driver->vfio, driver->view,
                                   driver->keepsake->sequence, text, sizeof text);
  snprintf(driver->device, sizeof driver->device, "%s %s", bad ? "no" : "ok", text);
  if (hf_taken_confirm(taken, &error)) refused("confirm", &error);
  taken->container_fd = -1;
  taken->devices[0].group_fd = -1;
  taken->devices[0].device_fd = -1;
  hf_taken_free(taken);
}

static void answer(const char* serial, const char* format, ...) {
  va_list arguments;
  printf("%s ", serial);
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n");
}

static void answer_error(const char* serial, const hf_error* error, int status) {
  answer(serial, "no errno=%d code=%s %s: %s", -status, error->code, error->object, error->cause);
}

// Maps something and unmaps it again: possible unless frozen.
static void command_map(struct driver* driver, const char* serial) {
  hf_error error = {0};
  const hf_mapping mapping = {.iova = EXTRA_IOVA,
                              .size = HUGE_PAGE,
                              .offset = WINDOWS_BYTES,
                              .memory = driver->memory,
                              .access = HF_READ};
  int status = hf_map(driver->container, &mapping, driver->view + WINDOWS_BYTES, &error);
  if (!status) status = hf_unmap(driver->container, EXTRA_IOVA, HUGE_PAGE, NULL, &error);
  if (status)
    answer_error(serial, &error, status);
  else
    answer(serial, "ok mapped and unmapped");
}

static void command_unmap(struct driver* driver, const char* serial) {
  hf_error error = {0};
  uint64_t bytes = 0;
  int status = hf_unmap(driver->container, kWindows[0].iova, kWindows[0].size, &bytes, &error);
  if (status)
    answer_error(serial, &error, status);
  else
    answer(serial, "ok unmapped %llu bytes", (unsigned long long)bytes);
}

// Registers further memory and maps its first two megabytes.
static void command_region(struct driver* driver, const char* serial, const char* path,
                           const char* name) {
  hf_error error = {0};
  hf_memory* memory;
  int descriptor;
  void* view = map_region(path, HUGE_PAGE, &descriptor);
  int status = hf_register_memory(driver->connection, name, descriptor, path, &memory, &error);
  const hf_mapping mapping = {
      .iova = SECOND_IOVA, .size = HUGE_PAGE, .memory = memory, .access = HF_READ | HF_WRITE};
  if (!status) status = hf_map(driver->container, &mapping, view, &error);
  if (status)
    answer_error(serial, &error, status);
  else
    answer(serial, "ok %s is registered", name);
}

static void obey(struct driver* driver, char* line) {
  char *rest = line, *serial = strsep(&rest, " "), *command = strsep(&rest, " ");
  if (!command)
    answer(serial, "no command");
  else if (!strcmp(command, "status"))
    answer(serial, "ok transfers=%llu wrong=%llu quiet=%d", (unsigned long long)driver->transfers,
           (unsigned long long)driver->wrong, driver->quiet);
  else if (!strcmp(command, "quiet"))
    answer(serial, "%s transfers=%llu wrong=%llu", driver->quiet ? "ok" : "no",
           (unsigned long long)driver->transfers, (unsigned long long)driver->wrong);
  else if (!strcmp(command, "found"))
    answer(serial, "%s", driver->found);
  else if (!strcmp(command, "device"))
    answer(serial, "%s", driver->device);
  else if (!strcmp(command, "map"))
    command_map(driver, serial);
  else if (!strcmp(command, "unmap"))
    command_unmap(driver, serial);
  else if (!strcmp(command, "region") && rest) {
    char* path = strsep(&rest, " ");
    command_region(driver, serial, path, rest ? rest : "");
  } else
    answer(serial, "no such command");
}

static void read_commands(struct driver* driver) {
  static char buffer[1024];
  static size_t filled;
  ssize_t got = read(STDIN_FILENO, buffer + filled, sizeof buffer - 1 - filled);
  if (got <= 0) exit(0);  // whoever drove us is gone
  filled += (size_t)got;
  buffer[filled] = 0;
  char* end;
  while ((end = strchr(buffer, '\n'))) {
    *end = 0;
    obey(driver, buffer);
    filled -= (size_t)(end + 1 - buffer);
    memmove(buffer, end + 1, filled + 1);
  }
  if (filled == sizeof buffer - 1) filled = 0;
}

static void work(struct driver* driver) {
  hf_error error;
  struct pollfd waits[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                           {.fd = hf_event_fd(driver->connection), .events = POLLIN}};
  for (;;) {
    if (poll(waits, 2, driver->quiet ? 1000 : 2) < 0 && errno != EINTR) die("poll");
    if (waits[1].revents && hf_dispatch(driver->connection, &error) < 0) refused("events", &error);
    if (waits[0].revents) read_commands(driver);
    if (driver->quiet) continue;
    if (driver->model->transfer(driver->model->self, driver->keepsake->sequence + 1)) {
      driver->wrong++;
    } else {
      driver->keepsake->sequence++;
      driver->transfers++;
    }
  }
}

int driver_main(int argc, char** argv, const struct device_model* model) {
  static struct driver driver = {.found = "no take, no find", .device = "no take, no look"};
  driver.model = model;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc == 6 && !strncmp(argv[1], "run", 3)) {
    open_and_register(&driver, argv, !strcmp(argv[1], "run"));
  } else if (argc == 5 && !strcmp(argv[1], "take")) {
    take_back(&driver, argv);
  } else {
    errno = 0;
    die("usage: run[-without-consent] BDF DAX CONTAINER REGION | take BDF CONTAINER REGION");
  }
  model->start(model->self, &driver.vfio, driver.view);
  printf("ready: %s, sequence %llu\n", argv[1], (unsigned long long)driver.keepsake->sequence);
  work(&driver);
  return 0;
}
