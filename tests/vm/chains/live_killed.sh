# shellcheck shell=dash
# As chains/live.sh, but the agent is killed before each kind of step of the restore, and once more
# when the restore is finished and nobody has taken anything: DMA goes on, the hold lasts, the
# domain is parked, and the next run finishes.

# shellcheck source=/dev/null
. /vm/chains/live.sh

step1() {
  scenario "$(parameter vm.scenario)"
  record
  arm
  expect 0 "frozen, to be adopted" holdfast freeze --policy adopt
  go "$(cat /run/vm0.pid)" 2
}

step2() {
  scenario "$(parameter vm.scenario)"
  native_is_kept_out "$NIC"
  try "the NIC is bound again" bind "$NIC"
  configure "$ARENA"
  expect 0 "what must be refused" raw_adopt wrong "$NIC" /dev/dax0.0
  killed_before 0x3b68:1 "the group joins" frozen restoring
  killed_before 0x3b66:1 "the container gets its type" restoring
  killed_before 0x3b71:1 "the first mapping" restoring
  killed_before 0x3b71:1025 "a mapping in the middle" restoring
  killed_before 0x3b6a:1 "the device is opened" restoring
  killed_before 0x3b71:2050 "the last mapping, after the descriptors were in custody" restoring
  agent_start
  expect 0 "the run after that restores" holdfast restore
  arena_is restored
  is_held
  raw_adopt mark /dev/dax0.0 4
  agent_end KILL
  is_parked "the agent killed after the restore"
  killed_before 0x3b71:2 "a mapping of the restore that is run again" restored
  agent_start
  arena_is restored
  expect 0 "the plan says so" holdfast plan
  says "adopt 2049 of 2050 mappings" "it keeps running"
  expect 0 "run again it adopts once more" holdfast restore
  show_out
  is_held
  expect 5 "held by a living agent, nothing is left" holdfast restore
  says HF-TOKEN-FINISHED
  hand_out
  expect 5 "taken, nothing is left" holdfast restore
  says HF-TOKEN-FINISHED
  done_with "$SCENARIO"
}

# killed_before IOCTL:N WHAT STATE...: the agent dies there, in one of these states of the arena.
killed_before() {
  kb_at=$1
  kb_what=$2
  shift 2
  AGENT="env LD_PRELOAD=/lib/kill_at.so KILL_AT=$kb_at holdfastd" agent_start
  holdfast restore >"$OUT" 2>&1 && fail "restored, though the agent was to be killed before: $kb_what"
  wait "$AGENT_PID"
  kb_status=$?
  if [ $kb_status != 137 ]; then
    show_out
    fail "killed before $kb_what: the agent ended with $kb_status"
  fi
  kb_state=$(holdfast show --state "$ARENA" 2>&1)
  case " $* " in
    *" $kb_state "*) ;;
    *) fail "killed before $kb_what: the arena is $kb_state" ;;
  esac
  is_parked "killed before: $kb_what ($kb_state)"
}

# is_parked WHAT: held, nobody has it, and the device goes on.
is_parked() {
  if ! grep -q "state=held,inherited,parked" /sys/kernel/iommu_preserve/domains; then
    cat /sys/kernel/iommu_preserve/domains
    fail "$1: not held and parked"
  elif ! is_running "$NIC"; then
    fail "$1: the device does not run"
  elif ! raw_adopt more /dev/dax0.0; then
    fail "$1: no frames arrive"
  else
    say "ok $SCENARIO: $1: held, parked, frames arrive"
  fi
}
