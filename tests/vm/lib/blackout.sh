# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables of `run` and for it
# What Holdfast adds to a kexec: the same kernel and initramfs, by turns bare and with everything.
# Sourced by `run`.

BLACKOUT_RUNS=${HOLDFAST_VM_RUNS:-5}

# blackout_machine KIND POOL: a machine through one kexec, with a state of its own. Few packets: they reach memory
# in the one kind only, and emulating that takes from the same two cores as the kernel's start.
blackout_machine() {
  local POOL=$2 SCRIPT=blackout RATE=20
  rm -f "$VM_DIR/$CHAIN.state"
  disks "$CHAIN"
  adopt_machine 120 "$REGION_MEMMAP $SECOND_MEMMAP $ROOT_BUS vm.kind=$1" "${NIC_DEVICE[@]}"
}

chain_blackout() {
  local run pool=$POOL oracles=()
  for ((run = 1; run <= BLACKOUT_RUNS; run++)); do
    blackout_machine bare "" || return 1
    blackout_machine full "$pool" || return 1
    saw wrong -eq 0 && saw strays -eq 0 && saw faults -eq 0 && saw registered -eq 1 &&
      saw invalidations -eq 0 || return 1
    cp "$VM_DIR/$CHAIN.oracle.0" "$VM_DIR/$CHAIN.oracle.run$run"
    oracles+=("$VM_DIR/$CHAIN.oracle.run$run")
  done
  run=0
  "$here/lib/blackout_report" "$CHAIN_LOG" "${oracles[@]}" >"$VM_DIR/$CHAIN.txt" 2>&1 || run=1
  stamp <"$VM_DIR/$CHAIN.txt" >>"$CHAIN_LOG"
  cat "$VM_DIR/$CHAIN.txt" >&2
  return $run
}
