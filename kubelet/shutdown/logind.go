package shutdown

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"
)

// Logind is what this room needs of the machine's login manager, over one connection.
//
// Source: systemd, "Inhibitor Locks"; man pages org.freedesktop.login1(5), logind.conf(5).
type Logind interface {
	// Delay is how long an inhibitor may hold up the shutdown.
	Delay() (time.Duration, error)
	// SetDelay asks for a longer delay. It takes effect a moment later.
	SetDelay(d time.Duration) error
	// Inhibit takes an inhibitor that holds up the shutdown until it is closed.
	Inhibit() (io.Closer, error)
	// Events are true when the machine begins to shut down, and false when that was called off. The channel
	// is closed with the connection.
	Events() (<-chan bool, error)
	Close() error
}

const (
	loginName    = "org.freedesktop.login1"
	loginPath    = dbus.ObjectPath("/org/freedesktop/login1")
	loginManager = "org.freedesktop.login1.Manager"
	busTimeout   = 10 * time.Second
)

// bus is logind over D-Bus.
type bus struct {
	conn   *dbus.Conn
	confd  string // directory of logind.conf's fragments
	cancel context.CancelFunc
}

// Dial connects to the bus at an address; empty: the system's. confd is where logind reads fragments of its
// configuration, /etc/systemd/logind.conf.d.
func Dial(ctx context.Context, address, confd string) (Logind, error) {
	ctx, cancel := context.WithCancel(ctx)
	options := []dbus.ConnOption{dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler())}
	connect := func() (*dbus.Conn, error) { return dbus.ConnectSystemBus(options...) }
	if address != "" {
		connect = func() (*dbus.Conn, error) { return dbus.Connect(address, options...) }
	}
	late := time.AfterFunc(busTimeout, cancel)
	conn, err := connect()
	if !late.Stop() && err == nil {
		conn.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("system bus: %w", err)
	}
	return &bus{conn: conn, confd: confd, cancel: cancel}, nil
}

func (b *bus) Close() error {
	defer b.cancel()
	return b.conn.Close()
}

func (b *bus) call(name string, path dbus.ObjectPath, method string, answer any, args ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), busTimeout)
	defer cancel()
	call := b.conn.Object(name, path).CallWithContext(ctx, method, 0, args...)
	if call.Err != nil {
		return fmt.Errorf("%s: %w", method, call.Err)
	}
	if answer == nil {
		return nil
	}
	if err := call.Store(answer); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return nil
}

func (b *bus) Delay() (time.Duration, error) {
	var v dbus.Variant
	if err := b.call(loginName, loginPath, "org.freedesktop.DBus.Properties.Get", &v, loginManager, "InhibitDelayMaxUSec"); err != nil {
		return 0, fmt.Errorf("logind's InhibitDelayMaxUSec: %w", err)
	}
	micros, ok := v.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("logind's InhibitDelayMaxUSec is a %T", v.Value())
	}
	return time.Duration(micros) * time.Microsecond, nil
}

// SetDelay writes a fragment of logind's configuration, under the name that upstream's kubelet uses, and has
// logind read it: a SIGHUP, sent by systemd.
func (b *bus) SetDelay(d time.Duration) error {
	if err := os.MkdirAll(b.confd, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("# Written by the kubelet: pods need this long to end (shutdownGracePeriod).\n[Login]\nInhibitDelayMaxSec=%.0f\n", d.Seconds())
	if err := os.WriteFile(filepath.Join(b.confd, "99-kubelet.conf"), []byte(text), 0o644); err != nil {
		return err
	}
	return b.call("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager.KillUnit", nil,
		"systemd-logind.service", "all", int32(1))
}

func (b *bus) Inhibit() (io.Closer, error) {
	var fd dbus.UnixFD
	if err := b.call(loginName, loginPath, loginManager+".Inhibit", &fd,
		"shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "inhibitor"), nil
}

func (b *bus) Events() (<-chan bool, error) {
	signals := make(chan *dbus.Signal, 4)
	b.conn.Signal(signals)
	if err := b.conn.AddMatchSignal(dbus.WithMatchInterface(loginManager), dbus.WithMatchMember("PrepareForShutdown"), dbus.WithMatchObjectPath(loginPath)); err != nil {
		return nil, fmt.Errorf("watch PrepareForShutdown: %w", err)
	}
	events := make(chan bool)
	go func() { // ends with the connection
		defer close(events)
		for s := range signals {
			if s.Name != loginManager+".PrepareForShutdown" || len(s.Body) != 1 {
				continue
			}
			begins, ok := s.Body[0].(bool)
			if !ok {
				continue
			}
			select {
			case events <- begins:
			case <-b.conn.Context().Done():
				return
			}
		}
	}()
	return events, nil
}
