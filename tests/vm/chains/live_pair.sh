# shellcheck shell=dash
# Two NICs in two containers through Holdfast, their driver processes and holdfastd killed before the
# kexec. What the host did to the first one's tables or context entry on the way (vm.expect), and what
# the restore makes of it:
#
#   both          nothing that concerns either: one restore adopts both
#   CODE          the first is refused with it, both values named, and blocked, held and parked as it
#                 is; the second is adopted by the same command, exit 6, taken, and ends; the first is released
#   removed       the second is out of its slot: refused, the first adopted by the same command, also when
#                 its IOMMU group has another number now (…-first); what is left of the second is released
#   release       nothing; the first is adopted with --only, the second released; a mapping that was to
#                 be left behind is not there any more

# shellcheck source=/dev/null
. /vm/chains/live.sh

ARENA=/dev/dax2.0
SECOND=$(parameter vm.second)
DOMAINS=/sys/kernel/iommu_preserve/domains
POOL_USED=/sys/kernel/iommu_preserve/pool_used

step1() {
  scenario "$(parameter vm.scenario)"
  for n in 0 1 2; do try "devdax $n from memmap=" devdax $n; done
  for nic in $NIC $SECOND; do try "$nic is bound to vfio-pci" bind "$nic"; done
  group_of "$NIC" >/state/group
  configure $ARENA
  expect 0 "an arena on devdax" holdfast init $ARENA
  agent_start
  boot_files
  driver_start vm1 live_driver "$SECOND" /dev/dax1.0 vm1 ram1 || show_log
  driver_start vm0 live_driver "$NIC" /dev/dax0.0 vm0 ram0 || show_log
  if [ "$(parameter vm.expect)" = release ]; then
    driver_ok vm0 "memory of the process is mapped, to be left behind" behind
  fi
  arm
  expect 0 "frozen, to be adopted" holdfast freeze --policy adopt
  show_out
  raw_adopt mark /dev/dax1.0 2
  raw_adopt mark /dev/dax0.0 2
  kill -KILL "$(cat /run/vm0.pid)" "$(cat /run/vm1.pid)"
  expect 0 "exec is content" holdfast kexec exec --direct --print-only
  agent_end KILL
  cp $DOMAINS /state/domains
  leave 2 last_words
}

last_words() {
  raw_adopt mark /dev/dax1.0 3
  raw_adopt mark /dev/dax0.0 3
  kexec -e
}

step2() {
  scenario "$(parameter vm.scenario)"
  sed 's/^/    before: /' /state/domains
  sed 's/^/    now: /' $DOMAINS
  for nic in $NIC $SECOND; do
    [ "$(parameter vm.expect):$nic" = "removed:$SECOND" ] || try "$nic is bound again" bind "$nic"
  done
  configure $ARENA
  agent_start
  expect_what=$(parameter vm.expect)
  case $expect_what in
    removed) removed ;;
    both) both ;;
    release) one_and_release ;;
    *) refused "$expect_what" ;;
  esac
  nothing_left
  kernel_is_calm
  show_log
  done_with "$SCENARIO"
}

both() {
  expect 0 "both are restored" holdfast restore
  show_out
  arena_is restored
  is_held
  raw_adopt mark /dev/dax0.0 4
  raw_adopt mark /dev/dax1.0 4
  take vm1 /dev/dax1.0
  take vm0 /dev/dax0.0
}

refused() {
  expect 6 "the plan refuses the first alone" holdfast plan
  says "$1" "can be restored: vm1; refused: vm0" "adopt 2049 of 2050 mappings" "a restore blocks its devices"
  is_running "$NIC" || fail "a plan blocked the first"
  partly vm1 vm0 "$1" /dev/dax1.0
  says "; blocked: device $NIC" "device $NIC: its bus mastering was on and is off now"
  is_blocked "$NIC"
  while read -r text; do says "$text"; done <<-TEXT
	$(wanted_words)
	TEXT
  is_parked_alone "$NIC"
  expect 3 "the first alone" holdfast restore --only vm0
  says "$1" "device $NIC: was blocked already" "nothing else was changed"
  still_partly vm1 vm0 "$1"
  says '"state": "already"'
  is_parked_alone "$NIC"
  is_blocked "$NIC"
  is_running "$SECOND" || fail "the second was stopped"
  # What is back is not kept waiting: it is taken, goes on, unmaps, ends, and is not looked for again.
  take vm1 /dev/dax1.0
  arena_is restoring
  still_partly vm1 vm0 "$1"
  is_blocked "$NIC"
  release_it vm0 "$NIC"
  arena_is recording
}

# partly TAKEN REFUSED CODE DAX: one restore adopts the one and does not take up the other.
partly() {
  expect 6 "$1 is adopted, $2 refused" holdfast restore
  raw_adopt mark "$4" 4
  show_out
  says "$3" "done $1: adopt, 2050 mappings" "REFUSED $2" "container $2" "restored: $1; not restored: $2" \
    HF-RESTORE-PARTLY "holdfast release $2"
  arena_is restoring
  is_held
}

# still_partly TAKEN REFUSED CODE: run again with nothing repaired it says the same, and does nothing.
still_partly() {
  expect 6 "run again" holdfast restore --json
  says "$3" HF-RESTORE-PARTLY '"strategy": "settled"' '"strategy": "refuse"'
  never_says '"verb"'
}

# is_parked_alone BDF: its domain, and none besides, waits for somebody to take it up.
is_parked_alone() {
  parked=$(grep -c "state=held,inherited,parked" $DOMAINS)
  [ "$parked" = 1 ] || fail "$parked domains are parked, not one"
  grep -A 1 "state=held,inherited,parked" $DOMAINS | grep -q "^device $1 " || fail "$1 is not parked any more"
}

# is_blocked BDF: it masters no bus, and has its power, its hold and its tables still.
is_blocked() {
  if masters_bus "$1" || [ "$(cat "/sys/bus/pci/devices/$1/power_state")" != D0 ]; then
    fail "$1 is not blocked"
  else
    say "ok $SCENARIO: $1 is blocked"
  fi
}

group_of() { basename "$(readlink "/sys/bus/pci/devices/$1/iommu_group")"; } # BDF

removed() {
  [ ! -e "/sys/bus/pci/devices/$SECOND" ] || fail "$SECOND is there"
  say "note $SCENARIO: $NIC was in group $(cat /state/group), is in $(group_of "$NIC")"
  case $SCENARIO in
    *-first) [ "$(group_of "$NIC")" != "$(cat /state/group)" ] || fail "$NIC is in the same group" ;;
  esac
  expect 6 "the plan refuses what is gone" holdfast plan
  says HF-DEVICE-MISSING "can be restored: vm0; refused: vm1" "adopt 2049 of 2050 mappings"
  partly vm0 vm1 HF-DEVICE-MISSING /dev/dax0.0
  says "device $SECOND"
  is_parked_alone "$SECOND"
  expect 3 "what is gone alone" holdfast restore --only vm1
  says HF-DEVICE-MISSING "nothing was changed"
  still_partly vm0 vm1 HF-DEVICE-MISSING
  is_parked_alone "$SECOND"
  release_it vm1 "$SECOND"
  arena_is recording
  take vm0 /dev/dax0.0
}

# wanted_words: what the refusal has to name besides its code: object, what was kept and what is there.
wanted_words() {
  case $(parameter vm.scenario) in
    live-bad-context | live-bad-pointer) printf '%s\n' "device $NIC" "kept: " "live: " ;;
    *) printf '%s\n' "iova 0x40000000" "page tables: 0x4" "record: 0x4" ;;
  esac
}

one_and_release() {
  expect 0 "the plan of one alone" holdfast plan --only vm0
  says "adopt 2049 of 2050 mappings"
  never_says vm1
  expect 0 "one alone is adopted" holdfast restore --only vm0
  show_out
  arena_is restoring
  raw_adopt mark /dev/dax0.0 4
  is_running "$SECOND" || fail "the other was stopped"
  release_it vm1 "$SECOND"
  arena_is recording
  take vm0 /dev/dax0.0
  expect 0 "what was released starts afresh" raw_adopt fresh "$SECOND" /dev/dax1.0
}

# release_it CONTAINER BDF: listed as parked before, gone after, its pages back in the pool.
release_it() {
  holdfast doctor >"$OUT"
  grep -A 2 "parked-domains" "$OUT" | grep -q "$2" || fail "doctor does not list $2 as parked"
  used=$(cat $POOL_USED)
  expect 0 "$1 is released" holdfast release "$1"
  grep -q "^device $2" $DOMAINS && fail "$2 still has a domain"
  [ -e "/sys/bus/pci/devices/$2" ] && masters_bus "$2" && fail "$2 still masters the bus"
  now=$(cat $POOL_USED)
  if [ "$now" -ge "$used" ]; then
    fail "the pool has $now bytes in use after the release, $used before"
  else
    say "ok $SCENARIO: the pool got $((used - now)) bytes back"
  fi
  holdfast doctor >"$OUT"
  grep -A 2 "parked-domains" "$OUT" | grep -q "$2" && fail "doctor still lists $2"
}
