"Processes of their own for tests that kill, starve or pair them, without the seconds that importing torch takes."
import multiprocessing, os, sys, warnings
import torch

# A server imports what the tests use once; every process is a fork of it. It computes nothing, so it has no threads.
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS: CONTEXT.set_forkserver_preload(["processes", "mirrorcfe.runs", "mirrorcfe.baselines.base"])

def _run(code, argv, env, out):
    os.environ.clear()
    os.environ.update(env)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.argv = ["-c", *argv]
    with open(out, "w", buffering=1) as said:
        for stream in (1, 2): os.dup2(said.fileno(), stream)
        sys.stdout = sys.stderr = said
        exec(compile(code, "<the code of a test>", "exec"), {"__name__": "__main__"})

class Started:
    "A process that was started: `wait` for its exit code, `kill` it, read what it `said`."
    def __init__(self, code, argv, out, **env):
        self.out = out
        env = dict(os.environ) | {name: str(value) for name, value in env.items()}
        self.process = CONTEXT.Process(target=_run, args=(code, list(map(str, argv)), env, str(out)))
        self.process.start()

    @property
    def running(self): return self.process.exitcode is None

    @property
    def said(self): return self.out.read_text() if self.out.exists() else ""

    def wait(self, timeout=300):
        self.process.join(timeout)
        return self.process.exitcode

    def kill(self):
        self.process.kill()
        return self.wait()
