# shellcheck shell=dash
# The same memory in machines with other devices: the host's side (chain_devices) keeps the machine's
# RAM in a file and starts QEMU again with another command line and the token that step1 printed.
# Each must refuse with exit 3 and name both sides; the machine as it was restores in the end.

ARENA=/dev/pmem1

step1() {
  scenario stock-device-missing
  try "edu is bound to vfio-pci" bind "$EDU"
  try "devdax" devdax 0
  configure $ARENA
  expect 0 "an arena on reserved memory" holdfast init $ARENA
  agent_start
  driver_start edu edu_driver run "$EDU" /dev/dax0.0 vm0 guest-ram || fail "the driver does not start"
  dma_goes_on edu "DMA runs"
  arm
  expect 0 "freeze" pre_kexec
  say "token $(sed -n 's/.*"command_line": *"\(.*\)".*/\1/p' /run/holdfast/loaded* | tr ' ' '\n' |
    grep '^holdfast\.' | tr '\n' ' ')"
  echo 2 >/state/step
}

# differs TEXT...: restore is refused here with exit 3 and says all of it.
differs() {
  configure $ARENA
  agent_start
  expect 3 "restore is refused" holdfast restore --policy adopt-or-remap
  show_out
  says "$@"
}

step2() {
  scenario stock-device-missing
  differs HF-DEVICE-MISSING "$EDU"
  done_with stock-device-missing
  echo 3 >/state/step
}

step3() {
  scenario stock-device-replaced
  bind "$EDU"
  differs HF-DEVICE-DIFFERS "$EDU" 0x1234 0x8086
  try "the device was not touched" device_is_untouched "$EDU"
  done_with stock-device-replaced
  echo 4 >/state/step
}

step4() {
  scenario stock-device-moved
  bind 0000:00:12.0
  differs HF-DEVICE-MOVED "$EDU" 0000:00:12.0
  try "the device was not touched" device_is_untouched 0000:00:12.0
  done_with stock-device-moved
  echo 5 >/state/step
}

step5() {
  scenario stock-device-back
  try "edu is bound to vfio-pci" bind "$EDU"
  configure $ARENA
  agent_start
  expect 0 "with the right device it is restored, all refusals later" \
    holdfast restore --policy adopt-or-remap
  driver_start edu edu_driver take "$EDU" vm0 guest-ram || fail "the driver does not take"
  driver_ok edu "the data is where it was" found
  dma_goes_on edu "DMA through the old IOVAs"
  done_with stock-device-back
}
