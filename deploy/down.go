package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/keelson/keelson/deploy/clean"
	"github.com/keelson/keelson/deploy/config"
	"github.com/keelson/keelson/deploy/runtime"
	"github.com/keelson/keelson/deploy/supervisor"
)

// Down stops everything on this machine and removes what it left in the kernel. Data
// stays: Up resumes them. grace is the time that containers get to end by themselves.
//
// A part that fails does not keep the others from being tried.
func (m *Machine) Down(ctx context.Context, grace time.Duration) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return m.down(ctx, grace)
}

func (m *Machine) down(ctx context.Context, grace time.Duration) error {
	s, known, err := config.Load(m.Paths)
	if err != nil {
		m.Progress.Note("settings", "%v", err)
	}
	m.Progress.Title("Keelson: stopping")
	r := m.runner()
	var errs []error
	fail := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	// First whoever would start things again.
	if known {
		var daemons []string
		for _, sv := range config.Services(s, m.Paths, config.Machine{}) {
			if sv.Name != config.Containerd {
				daemons = append(daemons, sv.Name)
			}
		}
		m.Progress.Wait("stopping the daemons")
		// The kubelet goes first, so that no pod is started while the rest stops.
		if s.Worker {
			fail(r.Stop(ctx, config.Kubelet))
		}
		if exists(m.Paths.ContainerdSocket) {
			m.Progress.Wait("stopping the pods")
			n, err := m.stopPods(ctx, grace)
			switch {
			case err != nil:
				m.Progress.Note("pods", "%v; their processes are killed next", err)
			case n > 0:
				m.Progress.Done("pods", "stopped %d", n)
			}
		}
		m.Progress.Wait("stopping the daemons")
		fail(r.Stop(ctx, daemons...))
		m.Progress.Done("daemons", "stopped")
	}
	fail(r.Shutdown(ctx))
	m.Progress.Wait("cleaning up")
	found, err := clean.All(ctx, m.Paths, s.CgroupRoot)
	fail(err)
	fail(m.removeRunning())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("not everything could be stopped; `keelson down` may be repeated:\n%w", err)
	}
	m.Progress.Done("cleaned up", "%s", found)
	m.Progress.Wait("")
	return nil
}

func (m *Machine) stopPods(ctx context.Context, grace time.Duration) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, grace+time.Minute, errors.New("the runtime took too long to stop the pods"))
	defer cancel()
	return runtime.StopAll(ctx, m.Paths.ContainerdSocket, grace)
}

// removeRunning forgets what only made sense while things ran: sockets, pid files, and
// the addresses given to pods, none of which is left.
func (m *Machine) removeRunning() error {
	var errs []error
	for _, dir := range []string{m.Paths.Run, filepath.Join(m.Paths.CNIState, "networks", "keelson"), filepath.Join(m.Paths.CNIState, "results")} {
		errs = append(errs, os.RemoveAll(dir))
	}
	for _, dir := range []string{filepath.Join(m.Paths.CNIState, "networks"), m.Paths.CNIState} {
		_ = os.Remove(dir) // where nothing else is in it
	}
	return errors.Join(errs...)
}

// Reset stops everything and forgets the cluster: its data, images and certificates.
func (m *Machine) Reset(ctx context.Context) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.down(ctx, 0); err != nil {
		return err
	}
	var errs []error
	for _, dir := range []string{m.Paths.Lib, m.Paths.Etc, m.Paths.Log, m.Paths.Kubelet, m.Paths.PodLogs, m.Paths.ContainerLogs} {
		if err := removeAll(dir); err != nil {
			errs = append(errs, err)
		}
	}
	conf, err := filepath.Glob(filepath.Join(m.Paths.CNIConf, "*keelson*"))
	errs = append(errs, err)
	for _, f := range conf {
		errs = append(errs, os.Remove(f))
	}
	if err := os.Remove(m.Paths.Plugin()); !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	m.Progress.Done("forgotten", "data, images, certificates and logs are gone")
	return nil
}

// removeAll removes a directory with all that is in it. The directory itself may be a
// mount point, a disk of its own for containers or etcd: then it stays, empty.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, syscall.EBUSY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// StopService and StartService control one service, for repairs and tests.
func (m *Machine) StopService(ctx context.Context, names ...string) error {
	return m.runner().Stop(ctx, names...)
}

func (m *Machine) StartService(ctx context.Context, names ...string) error {
	r, ok := m.runner().(supervisorRunner)
	if !ok {
		return errors.New("systemd runs the services here: systemctl start keelson-NAME")
	}
	return r.Start(ctx, names...)
}

// Services reports the states of the services.
func (m *Machine) Services(ctx context.Context) ([]supervisor.Status, error) {
	return m.runner().Status(ctx)
}
