# shellcheck shell=dash
# The same arena under kernels that lay memory out otherwise. Each must refuse with exit 3, name
# both sides, and leave the arena so that the right kernel restores it in the end.

# The layout, as in chain_memory on the host's side: 32M at 960M is the first device's memory, 32M at
# 1024M the second's, and the arena lies at 1152M.
ARENA=/dev/pmem2
RIGHT="memmap=32M!960M memmap=32M!1024M memmap=64M!1152M"

step1() {
  scenario stock-memory-moved
  try "edu is bound to vfio-pci" bind "$EDU"
  try "devdax" devdax 0
  try "another devdax" devdax 1
  configure $ARENA
  expect 0 "an arena on reserved memory" holdfast init $ARENA
  agent_start
  driver_start edu edu_driver run "$EDU" /dev/dax0.0 vm0 ram0 || fail "the driver does not start"
  driver_ok edu "a second region is registered" region /dev/dax1.0 ram1
  dma_goes_on edu "DMA runs"
  arm
  expect 0 "freeze" pre_kexec
  sed -n 's/.*"command_line": *"\(.*\)".*/\1/p' /run/holdfast/loaded* | tr ' ' '\n' |
    grep '^holdfast\.' | tr '\n' ' ' >/state/token
  # Moved by 16 MiB; the old place is kept out of the way, so that its bytes outlive this kernel.
  next_layout 2 "memmap=16M\$960M memmap=32M!976M memmap=32M!1024M memmap=64M!1152M"
}

# next_layout STEP MEMMAPS: leaves for a kernel that has the right token and other memory.
next_layout() {
  export MEMMAP="$2"
  expect 0 "the next kernel is loaded with $2" plain_load "$(cat /state/token)"
  leave "$1" kexec -e
}

# differs CODE TEXT...: restore is refused here with exit 3 and says all of it.
differs() {
  try "edu is bound to vfio-pci" bind "$EDU"
  configure "${ARENA_NOW:-$ARENA}"
  ls -l /dev/dax* /dev/pmem* 2>/dev/null
  agent_start
  expect 3 "restore is refused" holdfast restore --policy adopt-or-remap
  show_out
  says "$@"
  try "the device was not touched" device_is_untouched "$EDU"
}

step2() {
  scenario stock-memory-moved
  differs HF-MEMORY-MISSING ram0 "recorded 0x3c200000+0x1e00000" "/dev/pmem0: 0x3d000000+0x2000000"
  done_with stock-memory-moved

  # One more range in front: every device's number goes up by one.
  scenario stock-dax-renamed
  next_layout 3 "memmap=16M!896M $RIGHT"
}

step3() {
  scenario stock-dax-renamed
  ARENA_NOW=/dev/pmem3
  differs HF-MEMORY- ram0 /dev/dax0.0 /dev/dax1.0
  done_with stock-dax-renamed

  scenario stock-region-short
  next_layout 4 "memmap=32764K!960M memmap=32M!1024M memmap=64M!1152M"
}

# A page is missing at the end: libnvdimm then refuses the range ("misaligned, unable to map"), and
# there is no device at all.
step4() {
  scenario stock-region-short
  differs HF-MEMORY- ram0 /dev/dax0.0
  next_layout 5 "memmap=30M!960M memmap=32M!1024M memmap=64M!1152M"
}

# Two megabytes are missing, which libnvdimm takes: the device is there, and shorter.
step5() {
  scenario stock-region-short
  differs HF-MEMORY-DIFFERS ram0 0x1e00000 0x1c00000
  done_with stock-region-short

  scenario stock-dax-swapped
  next_layout 6 "$RIGHT"
}

step6() {
  scenario stock-dax-swapped
  swap_names
  differs HF-MEMORY- ram0 ram1 /dev/dax0.0 /dev/dax1.0
  swap_names
  expect 0 "with the right memory it is restored, all refusals later" \
    holdfast restore --policy adopt-or-remap
  driver_start edu edu_driver take "$EDU" vm0 ram0 || fail "the driver does not take"
  driver_ok edu "the data is where it was" found
  dma_goes_on edu "DMA through the old IOVAs"
  done_with stock-dax-swapped
}

# swap_names: what a careless udev rule can do.
swap_names() {
  mv /dev/dax0.0 /dev/dax.moving
  mv /dev/dax1.0 /dev/dax0.0
  mv /dev/dax.moving /dev/dax1.0
}
