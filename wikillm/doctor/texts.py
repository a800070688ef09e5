"""What follows from a finding, and what to type: one row for each check, or check/case."""

from __future__ import annotations

_INSTALL = "make env in a checkout; without one: pip install --upgrade wikillm"
_SAME_FOLDER = "--workdir FOLDER, the same on all nodes"
_LARGER = "run.dir=FOLDER on a larger disk"
_FEWER = f"train.save_total_limit=1, or {_LARGER}"
_OPS = "export TORCH_EXTENSIONS_DIR=FOLDER"
_GLOO = "export GLOO_SOCKET_IFNAME={card}, or the node's address in /etc/hosts"
_FASTER = "a faster card: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
_SLOW = "several nodes are then slower than one"
_LOCAL = "data.tokenizer=FOLDER, data.path=FILE"
_NEWER = "a newer driver, or torch for an older CUDA"
_MORE_CORES = "more cores (a container: --cpus; Slurm: --cpus-per-task)"
_SHM = "a container: --shm-size=1g; else: mount -o remount,size=1g /dev/shm"
_TOOLS = "apt-get install g++ python3-dev (dnf: gcc-c++ python3-devel); pip install ninja"
_KEYGEN = "if it was reinstalled: ssh-keygen -R {node}, then ssh {node} once"

TEXTS: dict[str, tuple[str, str]] = {
    # nodes
    "reach/timeout": ("the node does not answer", "is it on, is its name right? ssh {node}"),
    "reach/name": ("unknown name", "correct the hostfile, or add {node} to ~/.ssh/config"),
    "reach/refused": ("nothing listens for ssh there", "start sshd on {node}"),
    "reach/key": ("no login without a password", "ssh-copy-id {node}"),
    "reach/changed-key": ("its host key is not the known one", _KEYGEN),
    "reach/folder": ("the checkout is not at the same path", _SAME_FOLDER),
    "reach/python": ("WikiLLM does not start there", f"on {{node}}: {_INSTALL}"),
    "reach/other": ("no facts about this node", "ssh {node}"),
    "user-equal": ("files of one are not writable for the other", "User NAME in ~/.ssh/config"),
    "distinct-machines": ("its GPUs would get two processes each", "one line for each machine"),
    # python
    "python-version": ("WikiLLM runs on {supported}", "PYTHON=python3.12 make env in a checkout"),
    "packages-there": ("not installed for {python}", _INSTALL),
    "packages-fit": ("the tests ran with other versions", _INSTALL),
    "torch-build/missing": ("nothing can be trained", _INSTALL),
    "torch-build/cpu": ("the run would train on the CPU", "install torch from its CUDA index"),
    "torch-build/no-gpu": ("the run trains on the CPU", ""),
    "python-equal": ("pickled objects and compiled ops differ", "one PYTHON for all nodes"),
    "versions-equal": ("ranks would run different programs", "make env on all nodes"),
    # gpu
    "driver-cuda/old": ("torch would not find a GPU", _NEWER),
    "driver-cuda/minor": ("works, except for kernels compiled at run time", "a newer driver"),
    "gpu-driver": (
        "the driver is missing or does not run",
        "install or reload the driver; in a container: start it with --gpus all",
    ),
    "gpu-count/few": ("NCCL needs a GPU for each process", "slots={count} in the hostfile"),
    "gpu-count/idle": ("the others stay idle", "slots={count} in the hostfile, or --gpus"),
    "gpu-visible": ("processes without a GPU", "unset CUDA_VISIBLE_DEVICES"),
    "gpu-free": ("it takes memory and time of the run", "wait for it, or ask its owner"),
    "gpu-ecc": ("results can be wrong", "have the GPU reset or replaced"),
    "gpu-mode/mig": ("NCCL does not work between slices", "sudo nvidia-smi -mig 0"),
    "gpu-mode/slice": ("the run gets one slice", "sudo nvidia-smi -mig 0 for the whole GPU"),
    "gpu-mode/prohibited": ("no process may compute on it", "sudo nvidia-smi -c 0"),
    "gpu-bf16/missing": ("bf16 needs {wanted}", "train.precision=fp16"),
    "gpu-bf16/fp16": ("trained in fp16, which needs loss scaling", "train.precision=fp16"),
    "gpus-equal": ("NCCL and gloo do not mix; every step waits for the slowest", "fewer nodes"),
    "slots-equal": ("all nodes need the same number of processes", "slots={least} everywhere"),
    # host
    "cores/few": ("processes wait for each other at every step", _MORE_CORES),
    "cores/busy": ("other work slows the run down", "top"),
    "memory/offload": ("{recipe} keeps {size} on the host", "no offload, or more nodes"),
    "memory/short": ("the kernel may end the run", "end other programs, or use fewer processes"),
    "open-files/few": ("shards, workers and sockets need more", "ulimit -n 65536"),
    "open-files/nccl": ("NCCL opens a socket for each channel and peer", "ulimit -n 65536"),
    "locked-memory": ("RDMA cannot register its buffers: NCCL fails", "ulimit -l unlimited"),
    "shared-memory/missing": (
        "processes exchange data through it",
        "mount -t tmpfs tmpfs /dev/shm",
    ),
    "shared-memory/full": ("processes die with SIGBUS, or NCCL refuses", _SHM),
    # compiler
    "toolchain": ("DeepSpeed compiles its ops at first use", _TOOLS),
    "nvcc/missing": ("DeepSpeed's CPU optimizer needs it", "CUDA {cuda} toolkit, set CUDA_HOME"),
    "nvcc/major": ("DeepSpeed refuses another major version", "CUDA {cuda} toolkit, set CUDA_HOME"),
    "op-folder/read-only": ("compiled ops are stored there", _OPS),
    "op-folder/noexec": ("compiled ops cannot be loaded", _OPS),
    # disk
    "run-folder/read-only": ("checkpoints and logs are stored there", "run.dir=FOLDER"),
    "run-folder/inodes": ("no new file can be created, whatever the room", "df -i"),
    "run-folder/memory": ("a reboot deletes it, and it takes memory", "run.dir=FOLDER on a disk"),
    "run-folder/overlay": ("it is lost with the container", "run.dir=FOLDER on a mounted volume"),
    "checkpoint-room/none": ("not one fits: at least {least}", _LARGER),
    "checkpoint-room/none-fewer": ("not one fits: at least {least}", _FEWER),
    "checkpoint-room/some": ("saving fails when the disk is full", _FEWER),
    "store-room": ("building it stops when the disk is full", "data.store=FOLDER on a larger disk"),
    "shared-folder/unwritable": (
        "every node writes checkpoints",
        "run.dir=FOLDER on a shared disk",
    ),
    "shared-folder/local": ("checkpoints would be incomplete", "run.dir=FOLDER on a shared disk"),
    # network
    "hostname/alone": ("some tools look it up at every start", "127.0.1.1 {name} in /etc/hosts"),
    "hostname/unknown": ("gloo looks its own name up to find its card", _GLOO),
    "hostname/loopback": ("gloo gives the others this address: the start hangs", _GLOO),
    "master-name/unknown": ("ranks on this node cannot join", "--master-addr ADDRESS"),
    "master-name/loopback": ("ranks here would wait for this node", "--master-addr ADDRESS"),
    "master-equal": ("{master} is another machine for some", "--master-addr ADDRESS"),
    "card/none": ("the nodes do not reach each other", "ip route get ADDRESS"),
    "card/slow": (_SLOW, _FASTER),
    "card-named/none": (
        "NCCL and gloo may take one that the other nodes do not reach",
        "export NCCL_SOCKET_IFNAME={card} GLOO_SOCKET_IFNAME={card}",
    ),
    "card-named/absent": ("this node has {cards}", "export {variable}={card}"),
    "master-port": ("on the first node the run cannot start there", "--master-port {other}"),
    "mtu-equal": (
        "the first large collective hangs",
        "ip link set CARD mtu N, the same everywhere",
    ),
    "connections": ("ranks connect both ways", "open all TCP ports between the nodes (firewall)"),
    "all-reduce/failed": ("the run's first collective would fail alike", "see the checks above"),
    "all-reduce/slow": (_SLOW, _FASTER),
    # connectivity
    "reach-huggingface": ("tokenizers and models may come from it", f"HF_ENDPOINT, or {_LOCAL}"),
    "reach-hf-mirror": ("not needed where files are local", _LOCAL),
    "reach-modelscope": ("not needed where files are local", _LOCAL),
    "reach-swanlab": (
        "tracking stays offline",
        "observe.swanlab.mode=offline; `swanlab sync` later",
    ),
    # environment
    "foreign-variables": ("{why}", "unset {names}; {instead}"),
    "forwarded": ("the other nodes run without them", "set them in the nodes' shell start-up"),
    # run
    "data-source": ("the token store is built from it", "data.path=FILE, as this node sees it"),
    "batch": ("{why}", ""),
    "code-equal": ("ranks would run different programs", "one shared checkout, or one commit"),
    "folder-equal": ("relative paths mean different folders", _SAME_FOLDER),
    "data-equal": ("each node would build another store", "one copy on a shared folder"),
}
