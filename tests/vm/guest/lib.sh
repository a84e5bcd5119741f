# shellcheck shell=dash
# The words in which the chains (tests/vm/chains/*.sh) are written; sourced by the guest's init.
#
# A scenario's verdict is one line on the console, printed by the guest when every check up to the
# scenario's end held:  HOLDFAST-VM: PASS name   or   HOLDFAST-VM: FAIL name: what did not hold
#
# /state is carried from kernel to kernel on a small disk of its own (/dev/vdb), so that a scenario
# may begin before the kexec and end after it. It holds the harness's notes only; what Holdfast
# needs travels in reserved memory.

# The devices under test. The e1000e sits behind a root port so that a reset can reach it.
EDU=0000:00:10.0
E1000E=0000:01:00.0
export EDU E1000E

say() { echo "HOLDFAST-VM: $*"; }

# parameter NAME: the value of NAME= on the running kernel's command line.
parameter() {
  tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1
}

state_load() {
  mkdir -p /state
  [ -b /dev/vdb ] && tar xf /dev/vdb -C /state 2>/dev/null
  return 0
}

state_save() {
  (cd /state && tar cf /tmp/state.tar .)
  dd if=/tmp/state.tar of=/dev/vdb bs=64k conv=fsync,notrunc 2>/dev/null || say "note state not saved"
}

# uptime in hundredths of a second, to see what takes long
ticks() { sed 's/\([0-9]*\)\.\([0-9]*\) .*/\1\2/' /proc/uptime; }

vm_boot() {
  state_load
  CHAIN=$(parameter vm.chain)
  STEP=$(parameter vm.step)
  # After a reset of the machine the firmware boots the first command line again; the state knows.
  [ -s /state/step ] && [ "$STEP" = 1 ] && STEP=$(cat /state/step)
  BOOT_ID=$(cat /proc/sys/kernel/random/boot_id)
  say "boot chain=$CHAIN step=$STEP boot_id=$BOOT_ID kernel=$(uname -r)"
  if grep -q "$BOOT_ID" /state/boots 2>/dev/null; then
    say "FAIL $CHAIN: this is not a new kernel"
    vm_end
  fi
  echo "$BOOT_ID" >>/state/boots
  # shellcheck source=/dev/null
  . "/vm/chains/$CHAIN.sh"
  "step$STEP"
  vm_end
}

# Ends the machine; the host accepts no other exit.
vm_end() {
  state_save
  say end
  vmexit 2
  poweroff -f
}

# -- scenarios ----------------------------------------------------------------------------------

# scenario NAME: opens (or, after a kexec, reopens) a scenario.
scenario() {
  SCENARIO=$1
  say "BEGIN $1"
}

# fail WHAT: the open scenario has failed; its first reason counts.
fail() {
  say "not ok $SCENARIO: $*"
  [ -e "/state/failed.$SCENARIO" ] || echo "$*" >"/state/failed.$SCENARIO"
}

# done_with NAME: the verdict.
done_with() {
  if [ -e "/state/failed.$1" ]; then
    say "FAIL $1: $(cat "/state/failed.$1")"
  else
    say "PASS $1"
  fi
}

# try WHAT COMMAND...: the command must succeed. Its output goes to the console when it does not.
try() {
  try_what=$1
  shift
  if "$@" >/tmp/try.out 2>&1; then
    say "ok $SCENARIO: $try_what"
  else
    try_status=$?
    sed 's/^/    /' /tmp/try.out
    fail "$try_what (exit $try_status: $*)"
    return 1
  fi
}

# expect STATUS WHAT COMMAND...: the command must end with exactly this status. Output in $OUT.
OUT=/tmp/expect.out
expect() {
  expect_status=$1
  expect_what=$2
  shift 2
  expect_got=0
  "$@" >$OUT 2>&1 || expect_got=$?
  if [ "$expect_got" = "$expect_status" ]; then
    say "ok $SCENARIO: $expect_what (exit $expect_got)"
    [ "$expect_status" = 0 ] || head -n 4 $OUT | sed 's/^/    /'
  else
    sed 's/^/    /' $OUT
    fail "$expect_what: exit $expect_got instead of $expect_status ($*)"
    return 1
  fi
}

# says TEXT...: the output of the last expect contains each of these.
says() {
  for says_text; do
    if ! grep -qF -e "$says_text" $OUT; then
      sed 's/^/    /' $OUT
      fail "no \"$says_text\" in the output of: $expect_what"
      return 1
    fi
  done
}

# never_says TEXT: the output of the last expect does not contain it.
never_says() {
  if grep -qF -e "$1" $OUT; then
    sed 's/^/    /' $OUT
    fail "\"$1\" in the output of: $expect_what"
    return 1
  fi
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
  wait_left=$(($1 * 10))
  wait_what=$2
  shift 2
  while ! "$@" >/dev/null 2>&1; do
    wait_left=$((wait_left - 1))
    if [ $wait_left -le 0 ]; then
      fail "waited in vain for $wait_what ($*)"
      return 1
    fi
    sleep 0.1
  done
}

# -- machine ------------------------------------------------------------------------------------

# bind BDF: gives the function to vfio-pci.
bind() {
  echo vfio-pci >"/sys/bus/pci/devices/$1/driver_override"
  [ -e "/sys/bus/pci/devices/$1/driver" ] &&
    echo "$1" >"/sys/bus/pci/devices/$1/driver/unbind"
  echo "$1" >/sys/bus/pci/drivers_probe
  [ "$(basename "$(readlink "/sys/bus/pci/devices/$1/driver")")" = vfio-pci ]
}

# bind_e1000e: binds it with the secondary bus reset as its reset method. The kernel's first choice,
# power management, is carried out by QEMU 7.2 without resetting anything.
bind_e1000e() {
  echo bus >"/sys/bus/pci/devices/$E1000E/reset_method" && bind "$E1000E"
}

# devdax N: makes namespaceN.0 a devdax device, /dev/daxN.0; later kernels find it again themselves.
devdax() {
  ndctl create-namespace -f -e "namespace$1.0" --mode=devdax --map=mem --align=2M >/tmp/ndctl.out 2>&1 ||
    { cat /tmp/ndctl.out; return 1; }
  [ -c "/dev/dax$1.0" ]
}

# boot_files: the kernel and initrd for the next kexec, from the read-only disk.
boot_files() {
  [ -e /boot/vmlinuz ] && return
  mkdir -p /boot
  tar xf /dev/vda -C /boot
}

# next_cmdline STEP [PARAMETER...]: what the next kernel's command line starts from. The memory
# reservations are those of this boot, unless MEMMAP names others.
next_cmdline() {
  next_step=$1
  shift
  echo "console=ttyS0 panic=-1 quiet loglevel=4 intel_iommu=on ${MEMMAP:-$(memmaps)} \
vm.chain=$CHAIN vm.step=$next_step $*"
}

memmaps() { tr ' ' '\n' </proc/cmdline | grep '^memmap=' | tr '\n' ' '; }

# really_kexec: leaves for the loaded kernel and never comes back.
really_kexec() {
  [ "$(cat /sys/kernel/kexec_loaded)" = 1 ] || { fail "no kernel is loaded"; return 1; }
  state_save
  say "kexec at $(ticks)"
  sync
  kexec -e
  fail "kexec -e came back"
  vm_end
}
