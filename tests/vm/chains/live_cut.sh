# shellcheck shell=dash
# As live_pair, but the kernel itself finds the first one's tables damaged, at its start, and cuts that
# container off: Holdfast refuses it and adopts the other.

# shellcheck source=/dev/null
. /vm/chains/live_pair.sh

step2() {
  scenario "$(parameter vm.scenario)"
  sed 's/^/    now: /' $DOMAINS
  grep -q "^refused $NIC .*reason=$(parameter vm.expect)" $DOMAINS || fail "the kernel did not cut the first off"
  for nic in $NIC $SECOND; do try "$nic is bound again" bind "$nic"; done
  configure $ARENA
  agent_start
  expect 6 "the plan refuses the first alone" holdfast plan
  says HF-TABLES-CUT "can be restored: vm1; refused: vm0" "adopt 2049 of 2050 mappings"
  partly vm1 vm0 HF-TABLES-CUT /dev/dax1.0
  says "device $NIC" "$(parameter vm.expect)"
  expect 3 "the first alone" holdfast restore --only vm0
  says HF-TABLES-CUT "nothing was changed"
  still_partly vm1 vm0 HF-TABLES-CUT
  take vm1 /dev/dax1.0
  arena_is restoring
  expect 0 "the first is released" holdfast release vm0
  arena_is recording
  expect 0 "and starts afresh" raw_adopt fresh "$NIC" /dev/dax0.0
  nothing_left
  kernel_is_calm
  show_log
  done_with "$SCENARIO"
}
