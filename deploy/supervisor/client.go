package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/keelson/keelson/deploy/config"
)

// Client talks to the supervisor of this machine.
type Client struct {
	dir  string
	http *http.Client
}

// ErrNotRunning means that no supervisor answers.
var ErrNotRunning = errors.New("the supervisor is not running")

func NewClient(dir string) *Client {
	return &Client{dir, &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, SocketName))
		},
	}}}
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if len(body) == 0 {
		req.Body = nil
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, fmt.Errorf("supervisor: %s", strings.TrimSpace(string(text)))
	}
	return resp, nil
}

func (c *Client) call(ctx context.Context, method, path string, body []byte) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Ensure starts a supervisor (the program and arguments given) unless one answers.
// It returns when the supervisor answers or has ended with an error.
func (c *Client) Ensure(ctx context.Context, logFile string, command ...string) error {
	if _, err := c.Status(ctx); err == nil || !errors.Is(err, ErrNotRunning) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(logFile), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	defer out.Close()
	// The read end of this pipe closes in the supervisor once it listens, or with it.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("start the supervisor: %w", err)
	}
	w.Close()
	listening := make(chan struct{})
	go func() { // ends when the pipe's other end does: at Started or with the process
		_, _ = io.ReadAll(r)
		close(listening)
	}()
	select {
	case <-listening:
	case <-ctx.Done():
		return fmt.Errorf("start the supervisor: %w (see %s)", context.Cause(ctx), logFile)
	}
	if _, err := c.Status(ctx); err != nil {
		return fmt.Errorf("the supervisor did not start: %w (see %s)", err, logFile)
	}
	return cmd.Process.Release()
}

// Started tells Ensure's caller, from within the supervisor, that it listens.
func Started() { _ = os.NewFile(3, "started").Close() }

func (c *Client) Apply(ctx context.Context, list []config.Service) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, "/apply", b)
}

func (c *Client) Status(ctx context.Context) (list []Status, err error) {
	resp, err := c.do(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return list, json.NewDecoder(resp.Body).Decode(&list)
}

// Watch calls f with every change until f returns true or an error, or ctx ends.
func (c *Client) Watch(ctx context.Context, f func([]Status) (done bool, err error)) error {
	resp, err := c.do(ctx, http.MethodGet, "/watch", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var list []Status
		if err := dec.Decode(&list); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("the supervisor is gone: %w", err)
		}
		if done, err := f(list); done || err != nil {
			return err
		}
	}
}

func (c *Client) Stop(ctx context.Context, names ...string) error {
	return c.call(ctx, http.MethodPost, "/stop?names="+url.QueryEscape(strings.Join(names, ",")), nil)
}

func (c *Client) Start(ctx context.Context, names ...string) error {
	return c.call(ctx, http.MethodPost, "/start?names="+url.QueryEscape(strings.Join(names, ",")), nil)
}

// Shutdown stops all services, dependants first, and then the supervisor.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/shutdown", nil)
}
