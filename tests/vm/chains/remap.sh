# shellcheck shell=dash
# The whole way with a device that cannot be reset (edu), the arena on a pmem block device:
# record, browse, refuse to adopt, freeze, really kexec, restore, use; then what must be refused.

ARENA=/dev/pmem1

step1() {
  scenario stock-remap
  try "edu is bound to vfio-pci" bind "$EDU"
  try "devdax from memmap=" devdax 0
  configure $ARENA
  expect 0 "an arena on reserved memory" holdfast init $ARENA
  agent_start
  driver_start edu edu_driver run "$EDU" /dev/dax0.0 vm0 guest-ram || fail "the driver does not start"
  dma_goes_on edu "DMA runs"
  expect 0 "the host can do it" holdfast doctor
  show_out
  says "strategy-adopt" "not offered: " "strategy-remap" "devices stop for a kexec"

  scenario stock-mount
  try "mount" mount.real -t holdfast $ARENA /mnt
  try "the tree lists" ls -lR /mnt
  try "the container is in it" grep -q "" /mnt/health
  try "a file is written to files/" sh -c "echo 'state of the machine' > /mnt/files/vm0.state"
  try "a folder and a rename" sh -c "mkdir /mnt/files/d && cp /bin/busybox /mnt/files/d/new &&
    mv /mnt/files/d/new /mnt/files/d/busybox && sync"
  sha256sum </mnt/files/d/busybox >/state/busybox.sha256

  scenario stock-adopt-refused
  arm
  arena_is armed
  expect 4 "freeze --policy adopt is refused" holdfast freeze --policy adopt
  says HF- "cannot"
  arena_is armed
  dma_goes_on edu "DMA is undisturbed afterwards"
  done_with stock-adopt-refused

  scenario stock-remap
  expect 0 "the pre-kexec hook freezes" pre_kexec
  arena_is frozen
  driver_no edu "a map after the freeze is refused" "errno=16" map
  driver_no edu "an unmap after the freeze is refused" "errno=16" unmap
  driver_ok edu "the driver has stopped its device" quiet

  scenario stock-mount
  view_is_whole
  expect 0 "mappings read like /proc/PID/maps" cat /mnt/current/containers/vm0/mappings
  says 7fe0000000 guest-ram
  expect 0 "find" find /mnt/current/
  says "containers/vm0/devices/$EDU/identity.json" regions/guest-ram/info.json
  cp /mnt/current/checksums /state/checksums
  echo 'written after the freeze' >/mnt/files/late || fail "files/ after the freeze"
  try "umount" umount /mnt
  cp /run/edu.out /state/edu.out

  scenario stock-remap
  holdfast show --json $ARENA >/state/show.json
  leave 2 holdfast kexec exec --direct
}

step2() {
  scenario stock-remap
  try "edu is bound to vfio-pci" bind "$EDU"
  configure $ARENA
  agent_start
  arena_is frozen
  expect 0 "the arena verifies" holdfast verify
  expect 4 "restore --policy adopt is refused" holdfast restore --policy adopt
  says HF-ADOPT-UNSUPPORTED
  expect 0 "the plan" holdfast plan --policy adopt-or-remap
  says "cannot be reset" "remap"
  show_out
  expect 0 "the post-boot hook restores" post_boot
  show_out
  arena_is restored
  driver_start edu edu_driver take "$EDU" vm0 guest-ram || { fail "the driver does not take"; show_log; }
  driver_ok edu "another boot wrote the data, and it is where it was" found
  driver_ok edu "the device still holds what it read before the kexec" device
  dma_goes_on edu "DMA through the old IOVAs"
  # The owner is recorded anew.
  arena_is recording
  done_with stock-remap

  scenario stock-mount
  try "mount in the new kernel" holdfast mount $ARENA /mnt
  view_is_whole
  frozen_checksums_hold
  expect 0 "the file written before is there" cat /mnt/files/vm0.state
  says "state of the machine"
  expect 0 "the file written after the freeze too" cat /mnt/files/late
  says "written after the freeze"
  sha256sum </mnt/files/d/busybox | cmp - /state/busybox.sha256 || fail "files/d/busybox differs"
  expect 0 "health" cat /mnt/health
  never_says "look up"
  never_says HF-FREEZE-INCOMPLETE
  show_out
  try "umount" umount /mnt
  done_with stock-mount

  scenario stock-restore-twice
  expect 5 "a finished restore is not run again" holdfast restore --policy adopt-or-remap
  says HF-TOKEN-FINISHED
  dma_goes_on edu "DMA is undisturbed"
  arena_is recording
  done_with stock-restore-twice

  # What was restored and taken can be carried over the next kernel just the same.
  scenario stock-remap-again
  arm
  expect 0 "the pre-kexec hook freezes what was taken" pre_kexec
  driver_ok edu "the driver has stopped its device" quiet
  leave 3 holdfast kexec exec --direct
}

# The generation that was frozen is still there, byte for byte, under its number.
frozen_checksums_hold() {
  frozen_found=no
  for frozen_view in /mnt/generations/*; do
    cmp -s /state/checksums "$frozen_view/checksums" && frozen_found=yes
  done
  [ $frozen_found = yes ] || fail "no generation has the checksums that were sealed"
}

step3() {
  scenario stock-remap-again
  try "edu is bound to vfio-pci" bind "$EDU"
  configure $ARENA
  agent_start
  expect 0 "the post-boot hook restores again" post_boot
  driver_start edu edu_driver take "$EDU" vm0 guest-ram || { fail "the driver does not take"; show_log; }
  driver_ok edu "the first kernel's data is where it was" found
  driver_ok edu "the device still holds what it read before the second kexec" device
  dma_goes_on edu "DMA through the old IOVAs"
  done_with stock-remap-again

  scenario stock-reuse-cmdline
  boot_files
  expect 0 "kexec --reuse-cmdline without a new load" \
    kexec -s -l /boot/vmlinuz --initrd=/boot/initrd --reuse-cmdline
  leave 4 kexec -e
}

step4() {
  scenario stock-reuse-cmdline
  try "the old nonce is on the command line" test -n "$(parameter holdfast.nonce)"
  try "edu is bound to vfio-pci" bind "$EDU"
  configure $ARENA
  agent_start
  expect 5 "the post-boot hook refuses" post_boot
  says HF-TOKEN-
  expect 5 "restore refuses" holdfast restore --policy adopt-or-remap
  try "no descriptor of the device was opened" device_is_untouched "$EDU"
  done_with stock-reuse-cmdline
}
