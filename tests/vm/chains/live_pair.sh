# shellcheck shell=dash
# Two NICs in two containers through Holdfast, their driver processes and holdfastd killed before the
# kexec. What the host did to the first one's tables or context entry on the way (vm.expect), and what
# the restore makes of it:
#
#   both          nothing that concerns either: one restore adopts both
#   CODE          the first is refused with it, exit 3, both values named, and goes on as it is; the second
#                 is adopted, with --only; the first is released
#   release       nothing; the first is adopted with --only, the second released; a mapping that was to
#                 be left behind is not there any more

# shellcheck source=/dev/null
. /vm/chains/live.sh

ARENA=/dev/dax2.0
SECOND=0000:00:12.0
DOMAINS=/sys/kernel/iommu_preserve/domains
POOL_USED=/sys/kernel/iommu_preserve/pool_used

step1() {
  scenario "$(parameter vm.scenario)"
  for n in 0 1 2; do try "devdax $n from memmap=" devdax $n; done
  for nic in $NIC $SECOND; do try "$nic is bound to vfio-pci" bind "$nic"; done
  configure $ARENA
  expect 0 "an arena on devdax" holdfast init $ARENA
  agent_start
  boot_files
  driver_start vm1 live_driver $SECOND /dev/dax1.0 vm1 ram1 || show_log
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
  for nic in $NIC $SECOND; do try "$nic is bound again" bind "$nic"; done
  configure $ARENA
  agent_start
  expect_what=$(parameter vm.expect)
  case $expect_what in
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
  expect 3 "the first is refused, and nothing is done to either" holdfast restore
  show_out
  says "$1" "container vm0" "nothing was changed"
  while read -r text; do says "$text"; done <<-TEXT
	$(wanted_words)
	TEXT
  parked=$(grep -c "state=held,inherited,parked" $DOMAINS)
  [ "$parked" = 2 ] || fail "$parked domains are parked, not two"
  expect 3 "nor alone" holdfast restore --only vm0
  expect 0 "the other is adopted" holdfast restore --only vm1
  show_out
  grep -A 1 "state=held,inherited,parked" $DOMAINS | grep -q "^device $NIC" || fail "the first is not parked any more"
  is_running "$NIC" || fail "the first was stopped"
  raw_adopt mark /dev/dax1.0 4
  release_it vm0 "$NIC"
  arena_is recording
  take vm1 /dev/dax1.0
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
  is_running $SECOND || fail "the other was stopped"
  release_it vm1 $SECOND
  arena_is recording
  take vm0 /dev/dax0.0
  expect 0 "what was released starts afresh" raw_adopt fresh $SECOND /dev/dax1.0
}

# release_it CONTAINER BDF: listed as parked before, gone after, its pages back in the pool.
release_it() {
  holdfast doctor >"$OUT"
  grep -A 2 "parked-domains" "$OUT" | grep -q "$2" || fail "doctor does not list $2 as parked"
  used=$(cat $POOL_USED)
  expect 0 "$1 is released" holdfast release "$1"
  grep -q "^device $2" $DOMAINS && fail "$2 still has a domain"
  masters_bus "$2" && fail "$2 still masters the bus"
  now=$(cat $POOL_USED)
  if [ "$now" -ge "$used" ]; then
    fail "the pool has $now bytes in use after the release, $used before"
  else
    say "ok $SCENARIO: the pool got $((used - now)) bytes back"
  fi
  holdfast doctor >"$OUT"
  grep -A 2 "parked-domains" "$OUT" | grep -q "$2" && fail "doctor still lists $2"
}
