# shellcheck shell=bash
# A chain is one run of the emulated machine through several kernels, proving several scenarios on
# the way. chains/CHAIN.sh is its script inside the guest, the function chain_CHAIN here says which
# machines it runs in. Sourced by `run`.
# shellcheck disable=SC2154 # $here, $VM_DIR and the like are set by `run`

# Memory that outlives the kernel, away from where kernels put themselves: one range for what the
# devices map, one for the arena.
REGION_MEMMAP=memmap=64M!1G
ARENA_MEMMAP=memmap=64M!1152M

# The devices under test keep their places; the disks are the harness's own.
EDU_DEVICE=(-device "edu,dma_mask=0xffffffffffffffff,addr=10.0")
E1000E_DEVICE=(-device "pcie-root-port,id=slot1,chassis=1,addr=11.0" -netdev "hubport,id=net,hubid=0"
  -device "e1000e,bus=slot1,netdev=net")

# Where /dev/shm is large enough the RAM of a machine that is started twice lies there.
MACHINE_RAM=1536M

# seconds one machine of a chain may take: about five times what it takes on an idle host
limit() { echo $(($1 * ${HOLDFAST_VM_SLOW:-1})); }

disks() {
  truncate -s 1M "$VM_DIR/$1.state"
  DISKS=(-drive "file=$VM_BOOT_TAR,format=raw,if=none,id=boot,readonly=on"
    -device "virtio-blk-pci,drive=boot,addr=1d.0"
    -drive "file=$VM_DIR/$1.state,format=raw,if=none,id=state,cache=unsafe"
    -device "virtio-blk-pci,drive=state,addr=1e.0")
}

# needs_holdfast CHAIN...: whether any of them uses Holdfast's own binaries.
needs_holdfast() {
  local chain
  for chain; do
    case $chain in ground | adopt-* | control-*) ;; *) return 0 ;; esac
  done
  return 1
}

# machine LIMIT CMDLINE [QEMU ARGUMENT...]: one machine of the running chain.
machine() {
  local seconds=$1 cmdline=$2
  shift 2
  run_machine "$CHAIN_LOG" "$(limit "$seconds")" "$cmdline vm.chain=$CHAIN vm.script=${SCRIPT:-$CHAIN}" "${DISKS[@]}" "$@"
}

run_chain() {
  CHAIN=$1
  CHAIN_LOG=$VM_DIR/$CHAIN.log
  # What a failed run said is still wanted when the next one passes.
  if [ -e "$CHAIN_LOG" ] && [ ! -e "$VM_DIR/$CHAIN.ok" ]; then
    mkdir -p "$VM_DIR/failed"
    mv "$CHAIN_LOG" "$VM_DIR/failed/$CHAIN.$(date -r "$CHAIN_LOG" +%Y%m%d-%H%M%S).log"
  fi
  rm -f "$CHAIN_LOG"* "$VM_DIR/$CHAIN.state" "$VM_DIR/$CHAIN.ok"
  disks "$CHAIN"
  if "chain_${CHAIN//-/_}"; then touch "$VM_DIR/$CHAIN.ok"; fi
  rm -f "$VM_DIR/$CHAIN.state"
}

chain_ground() {
  machine 120 "$REGION_MEMMAP $ARENA_MEMMAP" -no-reboot "${EDU_DEVICE[@]}" "${E1000E_DEVICE[@]}"
}

chain_remap() {
  machine 260 "$REGION_MEMMAP $ARENA_MEMMAP" -no-reboot "${EDU_DEVICE[@]}"
}

chain_e1000e() {
  machine 200 "$REGION_MEMMAP $ARENA_MEMMAP memmap=32M!1280M" -no-reboot "${EDU_DEVICE[@]}" \
    "${E1000E_DEVICE[@]}"
}

# The machine may be reset: its memory stays, its kernel and command line are the first ones again.
chain_tokens() {
  machine 300 "$REGION_MEMMAP $ARENA_MEMMAP" "${EDU_DEVICE[@]}"
}

chain_memory() {
  machine 300 "memmap=32M!960M memmap=32M!1024M memmap=64M!1152M" -no-reboot "${EDU_DEVICE[@]}"
}

# One memory, five machines. The last command line carries the token that the first guest printed:
# to Holdfast they are what came after the kexec.
chain_devices() {
  local ram=$VM_DIR/devices.ram memory status=0 token=
  [ -w /dev/shm ] && ram=$(mktemp /dev/shm/holdfast-vm.XXXXXX)
  # A chain has a shell of its own, so this is its end, however it comes.
  # shellcheck disable=SC2064 # the name as it is now
  trap "rm -f '$ram'" EXIT
  memory=(-machine memory-backend=ram
    -object "memory-backend-file,id=ram,size=$MACHINE_RAM,mem-path=$ram,share=on")
  machine_with() {
    machine 80 "$REGION_MEMMAP $ARENA_MEMMAP $token" -no-reboot "${memory[@]}" "$@"
  }
  machine_with "${EDU_DEVICE[@]}" &&
    token=$(sed -n 's/.*HOLDFAST-VM: token //p' "$CHAIN_LOG" | head -n 1) &&
    machine_with &&
    machine_with -device "e1000e,addr=10.0" &&
    machine_with -device "edu,dma_mask=0xffffffffffffffff,addr=12.0" &&
    machine_with "${EDU_DEVICE[@]}" || status=1
  return $status
}
