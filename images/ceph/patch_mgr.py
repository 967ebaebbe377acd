"""Make Debian's ceph-mgr 18.2 work with Python 3.13, during the image's build. Upstream's image does not need this.

ceph-mgr runs every module in a Python subinterpreter. Since 3.12 objects must not cross from one to another, and a
thread state must not be touched after its thread is gone. Each replacement has to match exactly once, so that a newer
package fails the build instead of going unpatched.
"""

from pathlib import Path

MODULE = Path("/usr/share/ceph/mgr/mgr_module.py")
SPEC = Path("/usr/lib/python3/dist-packages/ceph/deployment/service_spec.py")

# A call from one module to another takes and gives pickles: arguments and results belong to the caller's interpreter.
DISPATCH = """        return self._ceph_dispatch_remote(module_name, method_name,
                                          args, kwargs)
"""
PICKLED_DISPATCH = """        import pickle
        try:
            request = pickle.dumps((method_name, args, kwargs))
        except Exception:
            return self._ceph_dispatch_remote(module_name, method_name, args, kwargs)
        kind, reply = self._ceph_dispatch_remote(module_name, '_answer_pickled', (request,), {})
        if kind == 'missing':
            raise NotImplementedError(reply)
        return pickle.loads(reply) if kind == 'pickle' else reply

    def _answer_pickled(self, request: bytes) -> Any:
        import pickle
        method_name, args, kwargs = pickle.loads(request)
        if not hasattr(self, method_name):
            return 'missing', method_name
        reply = getattr(self, method_name)(*args, **kwargs)
        try:
            return 'pickle', pickle.dumps(reply)
        except Exception:
            return 'object', reply
"""

# A completion wakes the sender and only then takes the sender's thread state again. The thread of a command-line request may
# be gone by then: one thread that lives as long as the module sends everything.
SEND = "        self._ceph_send_command(result, svc_type, svc_id, command, tag, inbuf)\n"
SEND_BY_THREAD = """        with MgrModule._sender_lock:
            sender = self.__dict__.get('_sender')
            if sender is None:
                from concurrent.futures import ThreadPoolExecutor
                sender = self.__dict__['_sender'] = ThreadPoolExecutor(max_workers=1)
        sender.submit(self._ceph_send_command, result, svc_type, svc_id, command, tag, inbuf).result()
"""

# A module without NOTIFY_TYPES leaves a pending AttributeError, which is then reported as that module's crash.
POOL = '    MGR_POOL_NAME = ".mgr"\n'
POOL_AND_DEFAULTS = (
    POOL + "    NOTIFY_TYPES: List[NotifyType] = []\n" + "    _sender_lock = threading.Lock()\n"
)

NEW = "    def __new__(cls: Type[ServiceSpecT], *args: Any, **kwargs: Any) -> ServiceSpecT:\n"
# the constructor needs the service's type when a pickle is read
NEW_WITH_ARGUMENTS = "    def __getnewargs__(self) -> Any:\n        return (self.service_type,)\n\n" + NEW


def replace_once(path: Path, old: str, new: str) -> None:
    """Replace the only occurrence of `old` in a file."""
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise SystemExit(f"{path}: {text.count(old)} occurrences instead of one of:\n{old}")
    path.write_text(text.replace(old, new), encoding="utf-8")


replace_once(MODULE, DISPATCH, PICKLED_DISPATCH)
replace_once(MODULE, SEND, SEND_BY_THREAD)
replace_once(MODULE, POOL, POOL_AND_DEFAULTS)
replace_once(SPEC, NEW, NEW_WITH_ARGUMENTS)
