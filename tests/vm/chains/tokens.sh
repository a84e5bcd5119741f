# shellcheck shell=dash
# Kernels that were not started for what the arena holds: after a thaw, with an old nonce, as a crash
# kernel, and a machine that was reset. Each must refuse with exit 5 and touch nothing.

ARENA=/dev/pmem1

# record: the device under test driven and recorded from here on.
record() {
  bind "$EDU" || fail "edu is not bound"
  configure $ARENA
  [ -S /run/holdfast/agent.sock ] || agent_start
  driver_start edu edu_driver run "$EDU" /dev/dax0.0 "$1" "$2" || fail "the driver does not start"
}

# refused CODE: in this kernel nothing is restored and nothing was touched.
refused() {
  bind "$EDU" || fail "edu is not bound"
  configure $ARENA
  agent_start
  before=$(holdfast show --state)
  expect 5 "the post-boot hook refuses" post_boot
  expect 5 "restore refuses" holdfast restore --policy adopt-or-remap
  says "$1"
  expect 0 "the refusal is kept in the arena" holdfast show --json
  says "$1"
  try "the device was not touched" device_is_untouched "$EDU"
  say "ok $SCENARIO: state before: $before, after: $(holdfast show --state)"
}

step1() {
  scenario stock-thaw-then-kexec
  try "devdax from memmap=" devdax 0
  configure $ARENA
  expect 0 "an arena on reserved memory" holdfast init $ARENA
  record vm0 guest-ram
  arm crashkernel=320M
  expect 0 "freeze" pre_kexec
  expect 0 "thaw" holdfast thaw
  driver_ok edu "mappings may change again" map
  dma_goes_on edu "DMA runs again after the thaw"
  expect 5 "kexec exec refuses" holdfast kexec exec --direct
  says HF-
  leave 2 kexec -e
}

step2() {
  scenario stock-thaw-then-kexec
  try "the voided nonce is on the command line" test -n "$(parameter holdfast.nonce)"
  refused HF-TOKEN-
  done_with stock-thaw-then-kexec

  scenario stock-stale-nonce
  record vm1 guest-ram-1
  arm crashkernel=320M
  expect 0 "freeze" pre_kexec
  # What is loaded is not what was armed: kexec-tools with this kernel's own command line.
  sealed_line=$(sed -n 's/.*"command_line": *"\(.*\)".*/\1/p' /run/holdfast/loaded* | head -n 1)
  sealed_nonce=$(echo "$sealed_line" | tr ' ' '\n' | sed -n 's/^holdfast.nonce=//p')
  sealed_arena=$(echo "$sealed_line" | tr ' ' '\n' | sed -n 's/^holdfast.arena=//p')
  [ -n "$sealed_nonce" ] || { fail "no nonce in the record of the load"; cat /run/holdfast/loaded*; }
  echo "holdfast.arena=$sealed_arena holdfast.nonce=$sealed_nonce" >/state/token
  expect 0 "kexec --reuse-cmdline over the armed kernel" \
    kexec -s -l /boot/vmlinuz --initrd=/boot/initrd --reuse-cmdline
  leave 3 kexec -e
}

step3() {
  scenario stock-stale-nonce
  refused HF-TOKEN-
  arena_is frozen
  done_with stock-stale-nonce

  scenario stock-kdump
  boot_files
  # The crash kernel gets the right token, so that only its being a crash kernel stands against it.
  expect 0 "a crash kernel is loaded" kexec -s -p /boot/vmlinuz --initrd=/boot/initrd \
    "--command-line=$(next_cmdline "$(cat /state/token)" nr_cpus=1 reset_devices)"
  echo 4 >/state/step
  state_save
  splats
  say "crash on purpose"
  drain
  echo c >/proc/sysrq-trigger
  fail "the kernel did not crash"
}

step4() {
  scenario stock-kdump
  try "this is a crash kernel" test -e /proc/vmcore
  refused HF-TOKEN-CRASH-KERNEL
  arena_is frozen
  done_with stock-kdump

  scenario stock-cold-boot
  echo 5 >/state/step
  state_save
  say "reset"
  drain
  reboot -f
  sleep 30
  fail "the machine was not reset"
}

step5() {
  scenario stock-cold-boot
  try "no nonce on the command line" test -z "$(parameter holdfast.nonce)"
  refused HF-TOKEN-COLD-BOOT
  arena_is frozen
  expect 0 "discard ends the frozen generation" holdfast discard
  record vm2 guest-ram-2
  dma_goes_on edu "a fresh recording works without init"
  arm
  expect 0 "freeze" pre_kexec
  leave 6 holdfast kexec exec --direct
}

step6() {
  scenario stock-cold-boot
  try "edu is bound to vfio-pci" bind "$EDU"
  configure $ARENA
  agent_start
  expect 0 "the fresh generation is restored" post_boot
  driver_start edu edu_driver take "$EDU" vm2 guest-ram-2 || fail "the driver does not take"
  driver_ok edu "the data is where it was" found
  dma_goes_on edu "DMA through the old IOVAs"
  done_with stock-cold-boot
}
