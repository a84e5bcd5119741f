# shellcheck shell=dash
# Holdfast on the patched kernel: a NIC fills its ring while the kernel is replaced. Its driver and
# holdfastd are killed before the kexec, as an init system would; in the new kernel holdfastd adopts
# what goes on, and a driver on public headers only takes it.
#
#   vm.again=yes     which is then frozen in its turn, killed, and adopted by a third kernel
#   vm.forced=LINE   past Holdfast the same image is loaded once more: without the pool (no-pool), or with a
#                    smaller one (small-pool)

ARENA=/dev/dax1.0

step1() {
  scenario "$(parameter vm.scenario)"
  record
  holdfast doctor >/tmp/doctor.out
  try "doctor offers adoption" grep -q "^ *ok *strategy-adopt" /tmp/doctor.out
  driver_ok vm0 "the library maps and unmaps" map
  expect 4 "no hold without a kernel to go on into" holdfast freeze --policy adopt
  says HF-HOLD-NOT-ARMED
  driver_ok vm0 "and nothing of that freeze stays" map
  expect 0 "kexec check likes the image" holdfast kexec check /boot/vmlinuz --initrd /boot/initrd \
    --append "$(common_cmdline)"
  says "takes over the page tables"
  arm
  expect 4 "a kernel that cannot take over is not loaded" holdfast kexec load /boot/vmlinuz-stock \
    --initrd /boot/initrd --append "$(common_cmdline)"
  says HF-KEXEC-NO-ADOPT
  expect 0 "frozen, to be adopted" holdfast freeze --policy adopt
  show_out
  says adopt
  tables_are_in_the_view
  driver_no vm0 "no mapping may change any more" HF-FROZEN map
  [ -z "$(parameter vm.forced)" ] || forced
  go "$(cat /run/vm0.pid)" 2
}

# tables_are_in_the_view: the live tables as they were frozen, with their checksums, in the mounted arena.
tables_are_in_the_view() {
  mkdir -p /mnt
  try "the arena is mounted" holdfast mount $ARENA /mnt
  view_is_whole
  tables=containers/vm0/page-tables
  # The tables, and the page that the device's context entry is in.
  pages=$(($(sed -n 's/^domain .* pages=//p' /sys/kernel/iommu_preserve/domains) + 1))
  try "every page of the tables is there" [ "$(find /mnt/current/$tables/pages -type f | wc -l)" = "$pages" ]
  try "and has a checksum" [ "$(grep -c " $tables/pages/0x" /mnt/current/checksums)" = "$pages" ]
  ring=$(($(cat /sys/bus/dax/devices/dax0.0/resource) + 0x200000))
  expect 0 "the ring's range" cat /mnt/current/$tables/ranges
  says "$(printf '0000000000000000-0000000000200000 rw %016x-' $ring)"
  try "the arena is unmounted" umount /mnt
}

# record: a device in an opted-in container, its driver and holdfastd, frames coming in.
record() {
  try "the NIC is bound" bind "$NIC"
  try "devdax from memmap=" devdax 0
  try "devdax for the arena" devdax 1
  configure $ARENA
  expect 0 "an arena on devdax" holdfast init $ARENA
  agent_start
  boot_files
  driver_start vm0 live_driver "$NIC" /dev/dax0.0 vm0 guest-ram || show_log
}

# go PID STEP: frozen; everything that had the device is killed, and the next kernel comes.
go() {
  raw_adopt mark /dev/dax0.0 2
  kill -KILL "$1"
  expect 0 "exec is content" holdfast kexec exec --direct --print-only
  agent_end KILL
  sed 's/^/    /' /sys/kernel/iommu_preserve/domains
  grep -qE "state=held,(inherited,)?parked,armed" /sys/kernel/iommu_preserve/domains || fail "it is not parked, held and armed"
  leave "$2" last_words
}

# forced: into a kernel that Holdfast would have refused, with the token of the one that it armed.
forced() {
  token=$(sed -n 's/.*"command_line": *"\(.*\)".*/\1/p' /run/holdfast/loaded* | tr ' ' '\n' |
    grep '^holdfast\.' | tr '\n' ' ')
  case $(parameter vm.forced) in
    no-pool) line=$(memmaps | sed 's/iommu_preserve=[^ ]*//') ;;
    small-pool) line=$(memmaps | sed 's/iommu_preserve=16M/iommu_preserve=8M/') ;;
  esac
  MEMMAP=$line try "past Holdfast another command line is loaded" plain_load "$token"
  expect 5 "exec is not content" holdfast kexec exec --direct --print-only
  show_out
  raw_adopt mark /dev/dax0.0 2
  kill -KILL "$(cat /run/vm0.pid)"
  agent_end KILL
  leave 2 last_words
}

last_words() {
  raw_adopt mark /dev/dax0.0 3
  kexec -e
}

step2() {
  scenario "$(parameter vm.scenario)"
  if [ "$(parameter vm.expect)" = lost ]; then
    lost
    return
  fi
  adopted
  [ -z "$(parameter vm.again)" ] || again
  hand_out
  done_with "$SCENARIO"
}

step3() {
  scenario "$(parameter vm.scenario)"
  adopted
  hand_out
  done_with "$SCENARIO"
}

# again: who took it is frozen like the one that recorded it first.
again() {
  begin vm0 /dev/dax0.0
  boot_files
  arm
  expect 0 "frozen, to be adopted once more" holdfast freeze --policy adopt
  kill -0 $taker || fail "its driver did not live to see it"
  go $taker 3
}

adopted() {
  native_is_kept_out "$NIC"
  try "the NIC is bound again" bind "$NIC"
  configure $ARENA
  expect 0 "what must be refused" raw_adopt wrong "$NIC" /dev/dax0.0
  agent_start
  expect 0 "the plan" holdfast plan
  show_out
  says "adopt 2049 of 2050 mappings" "it keeps running"
  expect 0 "restored" holdfast restore
  show_out
  raw_adopt mark /dev/dax0.0 4
  is_held
}

# lost: this kernel found nothing of the one before; what Holdfast was to adopt is blocked.
lost() {
  try "the NIC is bound again" bind "$NIC"
  configure $ARENA
  agent_start
  expect 4 "not adopted" holdfast restore
  show_out
  arena_is refused
  kernel_is_calm
  done_with "$SCENARIO"
}

# hand_out: the new driver takes it, goes on, and gives everything back; nothing stays.
hand_out() {
  take vm0 /dev/dax0.0
  nothing_left
  kernel_is_calm
  show_log
}

# take CONTAINER DAX: the new driver takes it, goes on, and gives everything back.
take() {
  begin "$@"
  give_back "$@"
}

# begin CONTAINER DAX: the new driver takes it and goes on.
begin() {
  raw_adopt mark "$2" 5
  adopt-driver "$1" >/run/adopt-driver.out 2>&1 &
  taker=$!
  wait_for 20 "the new driver" grep -q "^found: " /run/adopt-driver.out
  wait_for 5 "the hold to end" grep -q "state=free,inherited" /sys/kernel/iommu_preserve/domains
  sleep 1
}

# give_back CONTAINER DAX: it ends, and gives everything back.
give_back() {
  raw_adopt mark "$2" 6
  kill -TERM "$taker"
  expect 0 "the new driver took $1, went on, and gave everything back" wait "$taker"
  sed 's/^/    /' /run/adopt-driver.out
  cp /run/adopt-driver.out "$OUT"
  says "still running" "frames that arrived without a driver" "unmapped: "
  try "frames and interrupts reached it" grep -qE "^received: [1-9][0-9]{2,} frames, [0-9]+ bytes, [1-9][0-9]* interrupts" \
    /run/adopt-driver.out
}

nothing_left() {
  grep -v "^refused" /sys/kernel/iommu_preserve/domains && fail "a domain is left"
  used=$(cat /sys/kernel/iommu_preserve/pool_used)
  if [ "$used" -gt 24576 ]; then fail "the pool is not empty again: $used bytes"; fi
}

# is_held: adopting did not end the hold.
is_held() {
  if grep -q "state=held,inherited" /sys/kernel/iommu_preserve/domains; then
    say "ok $SCENARIO: it is still held"
  else
    cat /sys/kernel/iommu_preserve/domains
    fail "adopting ended the hold"
  fi
}
