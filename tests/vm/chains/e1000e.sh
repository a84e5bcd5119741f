# shellcheck shell=dash
# A device that is reset when it is opened again (e1000e), next to one whose owner did not consent;
# the arena on a devdax device. And a restore that is killed under way.

ARENA=/dev/dax1.0

step1() {
  scenario stock-remap-e1000e
  try "e1000e is bound to vfio-pci" bind_e1000e
  try "edu is bound to vfio-pci" bind "$EDU"
  try "devdax from memmap=" devdax 0
  try "devdax for the arena" devdax 1
  try "devdax for the second driver" devdax 2
  configure $ARENA
  expect 0 "an arena on devdax" holdfast init $ARENA
  agent_start
  driver_start net0 e1000e_driver run "$E1000E" /dev/dax0.0 net0 guest-ram || fail "the driver does not start"
  dma_goes_on net0 "frames loop"
  driver_start vm0 edu_driver run-without-consent "$EDU" /dev/dax2.0 vm0 edu-ram || fail "no second driver"
  arm
  expect 0 "the pre-kexec hook freezes" pre_kexec
  driver_ok net0 "the driver has stopped its device" quiet
  leave 2 holdfast kexec exec --direct
}

step2() {
  scenario stock-remap-e1000e
  try "e1000e is bound to vfio-pci" bind_e1000e
  try "edu is bound to vfio-pci" bind "$EDU"
  configure $ARENA
  agent_start
  expect 6 "the plan names the reset, and the consent that is missing" \
    holdfast plan --policy adopt-or-remap
  show_out
  says "resets it: bus" HF-REINIT-CONSENT "$EDU" "can be restored: net0; refused: vm0"
  expect 5 "the one without consent is refused" holdfast restore --policy adopt-or-remap --only vm0
  says HF-REINIT-CONSENT "$EDU"

  scenario stock-restore-killed
  holdfast restore --policy adopt-or-remap >/run/killed.out 2>&1 &
  killed=$!
  wait_for 10 "the restore to begin" restore_began
  agent_end KILL
  wait $killed && fail "the restore ended well although its agent was killed"
  sed 's/^/    /' /run/killed.out
  arena_is restoring
  agent_start
  expect 6 "run again it resumes, and the one without consent is refused again" \
    holdfast restore --policy adopt-or-remap
  says "done net0" "REFUSED vm0" HF-REINIT-CONSENT HF-RESTORE-PARTLY

  scenario stock-remap-e1000e
  driver_start net0 e1000e_driver take "$E1000E" net0 guest-ram || { fail "the driver does not take"; show_log; }
  driver_ok net0 "another boot wrote the data, and it is where it was" found
  driver_ok net0 "the device was reset, its driver set it up again" device
  dma_goes_on net0 "frames loop through the old IOVAs"
  expect 0 "the container without consent is given up" holdfast release vm0
  # Nobody waits any more, and what was taken is recorded anew.
  arena_is recording
  done_with stock-remap-e1000e

  scenario stock-restore-killed
  expect 5 "and once finished it is refused" holdfast restore --policy adopt-or-remap
  says HF-TOKEN-FINISHED
  done_with stock-restore-killed
}

# restore_began: the container's devices are being opened; a bus reset takes a second.
restore_began() { [ "$(holdfast show --state)" = restoring ]; }
