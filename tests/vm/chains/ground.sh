# shellcheck shell=dash
# Without Holdfast: that this kernel, this emulator and kexec-tools do what the other chains stand
# on. If this fails, the fault is not Holdfast's.

step1() {
  scenario stock-ground
  try "devdax from memmap=" devdax 0
  try "e1000e is bound to vfio-pci" bind_e1000e
  expect 0 "frames loop through devdax memory" raw_loop "$E1000E" /dev/dax0.0 first
  says "131 frames looped"
  try "edu is bound to vfio-pci" bind "$EDU"
  try "translated DMA into devdax memory" raw_dma "$EDU" /dev/dax0.0 first
  try "kexec image loads" plain_load
  leave 2 kexec -e
}

step2() {
  scenario stock-ground
  try "devdax is there again" test -c /dev/dax0.0
  try "edu is bound again" bind "$EDU"
  expect 0 "the data is where it was and DMA works" raw_dma "$EDU" /dev/dax0.0 second
  try "e1000e is bound again" bind_e1000e
  expect 0 "frames loop again" raw_loop "$E1000E" /dev/dax0.0 second
  says "registers are in their reset state" "131 frames looped"
  done_with stock-ground
}
