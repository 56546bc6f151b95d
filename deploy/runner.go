package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/keelson/keelson/deploy/config"
	"github.com/keelson/keelson/deploy/supervisor"
	"github.com/keelson/keelson/deploy/units"
)

// A runner keeps services running: systemd, or our supervisor.
type runner interface {
	// Apply makes the machine run these services and returns without waiting.
	Apply(ctx context.Context, list []config.Service) error
	// Watch reports the states until f is done.
	Watch(ctx context.Context, f func([]supervisor.Status) (bool, error)) error
	// Stop stops the named services and waits; they stay stopped.
	Stop(ctx context.Context, names ...string) error
	// Shutdown stops everything and whatever watches over it.
	Shutdown(ctx context.Context) error
	Status(ctx context.Context) ([]supervisor.Status, error)
	// Log is the end of a service's log, indented.
	Log(ctx context.Context, st supervisor.Status) string
	Name() string
}

func (m *Machine) runner() runner {
	if units.Here() && !m.Supervise {
		return systemdRunner{m.Paths}
	}
	return supervisorRunner{m, supervisor.NewClient(m.Paths.Supervisor)}
}

type supervisorRunner struct {
	m *Machine
	*supervisor.Client
}

func (r supervisorRunner) Name() string { return "supervisor" }

func (r supervisorRunner) Apply(ctx context.Context, list []config.Service) error {
	p := r.m.Paths
	if err := r.Ensure(ctx, p.LogFile("supervisor"), r.m.Self, "supervise", "--dir", p.Supervisor); err != nil {
		return err
	}
	return r.Client.Apply(ctx, list)
}

func (r supervisorRunner) Log(_ context.Context, st supervisor.Status) string {
	return tail(st.LogFile, logLines)
}

// logLines are shown of a service that does not start.
const logLines = 12

// Shutdown also ends services whose supervisor has died.
func (r supervisorRunner) Shutdown(ctx context.Context) error {
	err := r.Client.Shutdown(ctx)
	if errors.Is(err, supervisor.ErrNotRunning) {
		return stopByFile(ctx, r.m.Paths.Supervisor, "")
	}
	return err
}

func (r supervisorRunner) Stop(ctx context.Context, names ...string) error {
	err := r.Client.Stop(ctx, names...)
	if errors.Is(err, supervisor.ErrNotRunning) {
		var errs []error
		for _, n := range names {
			errs = append(errs, stopByFile(ctx, r.m.Paths.Supervisor, n))
		}
		return errors.Join(errs...)
	}
	return err
}

// stopByFile ends the services that pid files name: one, or all.
func stopByFile(ctx context.Context, dir, only string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		return err
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".pid")
		if only != "" && only != name {
			continue
		}
		pid, start, ok := supervisor.ReadPID(dir, name)
		if !ok {
			continue
		}
		_ = syscall.Kill(pid, syscall.SIGTERM)
		kill := time.Now().Add(15 * time.Second)
		for {
			if now, alive := supervisor.StartTime(pid); !alive || now != start {
				break
			}
			if time.Now().After(kill) || ctx.Err() != nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			time.Sleep(10 * time.Millisecond)
		}
		_ = os.Remove(f)
	}
	return nil
}

type systemdRunner struct{ paths config.Paths }

func (r systemdRunner) Name() string { return "systemd" }

func (r systemdRunner) fingerprints() string { return filepath.Join(r.paths.Run, "fingerprints") }

func (r systemdRunner) Apply(ctx context.Context, list []config.Service) error {
	// A unit's text does not show that the files it reads changed.
	var restart []string
	var all strings.Builder
	before, _ := os.ReadFile(r.fingerprints())
	for _, sv := range list {
		line := sv.Name + " " + sv.Fingerprint + "\n"
		all.WriteString(line)
		if len(before) > 0 && !strings.Contains(string(before), line) {
			restart = append(restart, sv.Name)
		}
	}
	if err := units.Apply(ctx, list, r.paths, restart); err != nil {
		return err
	}
	_, err := config.WriteFile(r.fingerprints(), []byte(all.String()), 0o600)
	return err
}

func (r systemdRunner) Status(ctx context.Context) ([]supervisor.Status, error) {
	installed, err := filepath.Glob(filepath.Join(units.Dir, "keelson-*.service"))
	if err != nil {
		return nil, err
	}
	var out []supervisor.Status
	for _, f := range installed {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "keelson-"), ".service")
		state, err := units.Show(ctx, name)
		if err != nil {
			return nil, err
		}
		st := supervisor.Status{Name: name, PID: state.PID, Restarts: state.Restarts, LogFile: "journalctl -u " + units.Name(name)}
		switch {
		case state.Active == "active":
			st.Phase, st.Since = supervisor.Ready, state.Since
		case state.Active == "activating" && state.Sub == "auto-restart", state.Active == "failed":
			st.Phase, st.Last = supervisor.Backing, state.Exit
		case state.Active == "activating":
			st.Phase = supervisor.Starting
		case state.Active == "deactivating":
			st.Phase = supervisor.Stopping
		default:
			st.Phase = supervisor.Stopped
		}
		out = append(out, st)
	}
	return out, nil
}

func (r systemdRunner) Watch(ctx context.Context, f func([]supervisor.Status) (bool, error)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := r.Status(ctx)
		if err != nil {
			return err
		}
		if done, err := f(list); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for systemd: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func (r systemdRunner) Stop(ctx context.Context, names ...string) error {
	return units.Stop(ctx, names...)
}

func (r systemdRunner) Log(ctx context.Context, st supervisor.Status) string {
	return indent(units.Log(ctx, st.Name, logLines), logLines)
}

func (r systemdRunner) Shutdown(ctx context.Context) error {
	if err := units.Stop(ctx); err != nil {
		return err
	}
	return errors.Join(units.StopSlices(ctx), units.Remove(ctx))
}
