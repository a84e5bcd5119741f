// The stock kernel's ground, without Holdfast: map devdax memory through VFIO type1 and let an edu
// device copy within it. `raw_dma BDF DAX first` before the kexec, `raw_dma BDF DAX second` after.

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "edu.h"
#include "vfio.h"

int main(int argc, char** argv) {
  struct vfio_device vfio;
  struct edu edu;
  int dax;
  char boot_id[40];
  errno = 0;
  if (argc != 4) die("usage: raw_dma BDF DAX first|second");
  uint8_t* memory = map_region(argv[2], WINDOWS_BYTES, &dax);
  struct keepsake* keepsake = (struct keepsake*)memory;
  uint8_t* source = memory + 0x400000;
  uint8_t* target = memory + 0x600000;
  read_boot_id(boot_id);
  int second = strcmp(argv[3], "second") == 0;
  if (second) {
    errno = 0;
    if (memcmp(keepsake->magic, "HFKEEP01", 8)) die("no keepsake at the start of %s", argv[2]);
    if (!strcmp(keepsake->boot_id, boot_id)) die("the keepsake is of this boot");
    if (pattern_check(source, 0x200000, keepsake->seed, 0)) die("the pattern is damaged");
  } else {
    memcpy(keepsake->magic, "HFKEEP01", 8);
    memcpy(keepsake->boot_id, boot_id, sizeof boot_id);
    keepsake->seed = 42;
    pattern_fill(source, 0x200000, keepsake->seed, 0);
  }
  memset(target, 0, 0x200000);
  vfio_open(&vfio, argv[1]);
  for (int i = 0; i < WINDOW_COUNT; i++)
    if ((errno = vfio_map(&vfio, kWindows[i].iova, memory + kWindows[i].offset, kWindows[i].size)))
      die("MAP_DMA at iova 0x%llx", (unsigned long long)kWindows[i].iova);
  edu_start(&edu, &vfio);
  errno = 0;
  if (second) {
    // The device was not reset: its own memory still holds what it read before the kexec.
    if (edu_store(&edu, iova_of(0x600000), EDU_BLOCK)) die("DMA does not end");
    if (memcmp(target, source + 4096, EDU_BLOCK)) die("the device forgot what it had read");
  }
  if (edu_load(&edu, iova_of(0x401000), EDU_BLOCK)) die("DMA does not end");
  if (edu_store(&edu, iova_of(0x600000 + 8192), EDU_BLOCK)) die("DMA does not end");
  if (memcmp(target + 8192, source + 4096, EDU_BLOCK)) die("DMA went elsewhere");
  if ((errno = vfio_unmap(&vfio, iova_of(0x600000), 0x200000))) die("UNMAP_DMA");
  memset(target + 8192, 0, EDU_BLOCK);
  if (edu_store(&edu, 0x100000000ull + 8192, EDU_BLOCK)) die("DMA does not end");
  for (uint32_t i = 0; i < EDU_BLOCK; i++)
    if (target[8192 + i]) die("DMA reached memory that is no longer mapped");
  printf("raw_dma: %s: translated DMA works, blocked DMA is blocked\n", argv[3]);
  return 0;
}
