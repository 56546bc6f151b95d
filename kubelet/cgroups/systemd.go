package cgroups

import (
	"context"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/keelson/keelson/kubelet/criconfig"
)

// manager1 talks to systemd (org.freedesktop.systemd1).
type manager1 struct{ conn *dbus.Conn }

const systemdTimeout = 10 * time.Second

func dialSystemd() (systemd, error) {
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil, err
	}
	return manager1{conn}, nil
}

// slice starts a slice, or sets the properties of one that runs.
func (m manager1) slice(name string, v Values) error {
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	limits := properties(v)
	unit := append([]dbus.Property{
		{Name: "Description", Value: godbus.MakeVariant("pods: " + name)},
		{Name: "DefaultDependencies", Value: godbus.MakeVariant(false)},
		{Name: "CPUAccounting", Value: godbus.MakeVariant(true)},
		{Name: "MemoryAccounting", Value: godbus.MakeVariant(true)},
		{Name: "TasksAccounting", Value: godbus.MakeVariant(true)},
	}, limits...)
	done := make(chan string, 1)
	_, err := m.conn.StartTransientUnitContext(ctx, name, "replace", unit, done)
	if err == nil {
		select {
		case <-done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return nil
	}
	if !strings.Contains(err.Error(), "already loaded") && !strings.Contains(err.Error(), "already exists") {
		return err
	}
	if len(limits) == 0 {
		return nil
	}
	return m.conn.SetUnitPropertiesContext(ctx, name, true, limits...)
}

func properties(v Values) []dbus.Property {
	var out []dbus.Property
	put := func(name string, value uint64) {
		out = append(out, dbus.Property{Name: name, Value: godbus.MakeVariant(value)})
	}
	if v.Shares > 0 {
		put("CPUWeight", uint64(criconfig.Weight(v.Shares)))
	}
	if v.MemoryBytes > 0 {
		put("MemoryMax", uint64(v.MemoryBytes))
	}
	if v.Pids > 0 {
		put("TasksMax", uint64(v.Pids))
	}
	return out
}

func (m manager1) remove(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	done := make(chan string, 1)
	if _, err := m.conn.StopUnitContext(ctx, name, "replace", done); err != nil {
		if strings.Contains(err.Error(), "not loaded") {
			return nil
		}
		return err
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return nil
}
