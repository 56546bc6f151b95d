package cgroups

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/keelson/keelson/kubelet/criconfig"
)

// manager1 talks to systemd (org.freedesktop.systemd1). It connects again when the bus
// has gone, as it does when the administrator restarts it.
type manager1 struct {
	periodMicros int64 // of CPU quotas
	mu           sync.Mutex
	conn         *dbus.Conn // guarded by mu
}

const systemdTimeout = 10 * time.Second

func dialSystemd(periodMicros int64) (systemd, error) {
	m := &manager1{periodMicros: periodMicros}
	_, err := m.connection()
	return m, err
}

// connection is a live one.
func (m *manager1) connection() (*dbus.Conn, error) {
	m.mu.Lock()
	conn := m.conn
	m.mu.Unlock()
	if conn != nil && conn.Connected() {
		return conn, nil
	}
	// The context is the connection's for all its life, so only a slow start may end it.
	ctx, cancel := context.WithCancelCause(context.Background())
	late := time.AfterFunc(systemdTimeout, func() { cancel(errors.New("the system bus does not answer")) })
	fresh, err := dbus.NewSystemConnectionContext(ctx)
	if !late.Stop() && err == nil {
		fresh.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel(err)
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn = fresh
	return fresh, nil
}

// slice starts a slice, or sets the properties of one that runs.
func (m *manager1) slice(name string, v Values) error {
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	limits := properties(v, m.periodMicros)
	unit := append([]dbus.Property{
		{Name: "Description", Value: godbus.MakeVariant("pods: " + name)},
		{Name: "DefaultDependencies", Value: godbus.MakeVariant(false)},
		{Name: "CPUAccounting", Value: godbus.MakeVariant(true)},
		{Name: "IOAccounting", Value: godbus.MakeVariant(true)},
		{Name: "MemoryAccounting", Value: godbus.MakeVariant(true)},
		{Name: "TasksAccounting", Value: godbus.MakeVariant(true)},
	}, limits...)
	done := make(chan string, 1)
	conn, err := m.connection()
	if err != nil {
		return err
	}
	_, err = conn.StartTransientUnitContext(ctx, name, "replace", unit, done)
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
	return conn.SetUnitPropertiesContext(ctx, name, true, limits...)
}

// properties are all the limits that systemd has a word for. It must know every one of
// them: whenever it reloads, it sets the files of its slices to what it knows.
//
// Source: systemd.resource-control(5); on the bus, times are microseconds.
func properties(v Values, periodMicros int64) []dbus.Property {
	var out []dbus.Property
	put := func(name string, value uint64) {
		out = append(out, dbus.Property{Name: name, Value: godbus.MakeVariant(value)})
	}
	if v.Shares > 0 {
		put("CPUWeight", uint64(criconfig.Weight(v.Shares)))
	}
	switch period := max(periodMicros, 1000); {
	case v.QuotaMicros > 0:
		// The kernel's quota is for one period, systemd's for a second. It keeps whole percents: what is
		// more is rounded up, or a reload of systemd would leave the pod less than its containers have.
		const percent = 10_000
		perSecond := uint64(v.QuotaMicros) * 1_000_000 / uint64(period)
		put("CPUQuotaPeriodUSec", uint64(period))
		put("CPUQuotaPerSecUSec", (perSecond+percent-1)/percent*percent)
	case v.QuotaMicros < 0:
		put("CPUQuotaPeriodUSec", uint64(period))
		put("CPUQuotaPerSecUSec", infinity)
	}
	switch {
	case v.MemoryBytes > 0:
		put("MemoryMax", uint64(v.MemoryBytes))
	case v.MemoryBytes < 0:
		put("MemoryMax", infinity)
	}
	if v.Pids > 0 {
		put("TasksMax", uint64(v.Pids))
	}
	return out
}

// infinity is how systemd writes "no limit".
const infinity = math.MaxUint64

func (m *manager1) remove(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	done := make(chan string, 1)
	conn, err := m.connection()
	if err != nil {
		return err
	}
	if _, err := conn.StopUnitContext(ctx, name, "replace", done); err != nil {
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
