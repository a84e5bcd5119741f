# shellcheck shell=dash
# How long the machine is away: one kexec, bare or with everything. lib/blackout_report reads the
# clock lines, which the host stamps.
#
#   vm.kind=bare   nothing of Holdfast's, no pool; vm.kind=full   recorded, frozen, adopted

ARENA=/dev/dax1.0

clock() { say "clock $1"; }

step1() {
  scenario blackout
  boot_files
  if [ "$(parameter vm.kind)" = full ]; then
    prepare
  else
    clock load-begin
    try "kexec image loads" plain_load
    clock load-end
  fi
  leave 2 jump
}

prepare() {
  try "the NIC is bound" bind "$NIC"
  try "devdax from memmap=" devdax 0
  try "devdax for the arena" devdax 1
  configure $ARENA
  expect 0 "an arena on devdax" holdfast init $ARENA
  agent_start
  driver_start vm0 live_driver "$NIC" /dev/dax0.0 vm0 guest-ram || show_log
  clock load-begin
  arm
  clock load-end
  clock freeze-begin
  expect 0 "frozen, to be adopted" holdfast freeze --policy adopt
  clock freeze-end
  sed 's/^/    /' /sys/kernel/iommu_preserve/domains
  raw_adopt mark /dev/dax0.0 2
  kill -KILL "$(cat /run/vm0.pid)"
  agent_end KILL
}

# The same for both; what was said must have left the serial port.
jump() {
  [ "$(parameter vm.kind)" = full ] && raw_adopt mark /dev/dax0.0 3
  clock jump
  sleep 0.1
  kexec -e
}

step2() {
  scenario blackout
  if [ "$(parameter vm.kind)" = full ]; then
    adopted
  else
    kernel_is_calm
    [ -e /state/failed.blackout ] && done_with blackout
  fi
}

adopted() {
  try "the NIC is bound again" bind "$NIC"
  configure $ARENA
  clock agent-begin
  agent_start
  clock agent-end
  clock verify-begin
  expect 0 "the plan" holdfast plan
  clock verify-end
  clock adopt-begin
  expect 0 "restored" holdfast restore
  clock adopt-end
  show_out
  for phase in 4 5 6; do raw_adopt mark /dev/dax0.0 $phase; done
  kernel_is_calm
  done_with blackout
}
