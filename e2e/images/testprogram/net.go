package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// serve answers: / the host's name; /env?name=X; /headers; /client the caller's
// address; /ready 200 unless the file /tmp/unready exists; /healthy likewise with
// /tmp/unhealthy; /slow?ms=N; /bulk?bytes=N that many bytes. Datagrams are sent back.
func serve(args []string) int {
	port := argument(args, 0, "8080")
	linger := seconds(argument(args, 1, "0"))
	host, _ := os.Hostname()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, host) })
	mux.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, os.Getenv(r.FormValue("name"))) })
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) { _ = r.Header.Write(w) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		fmt.Fprintln(w, host)
	})
	mux.HandleFunc("/bulk", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, &pattern{}, n)
	})
	for _, state := range []string{"ready", "healthy"} {
		mux.HandleFunc("/"+state, func(w http.ResponseWriter, r *http.Request) {
			if _, err := os.Stat("/tmp/un" + state); err == nil {
				http.Error(w, "not "+state, http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, state)
		})
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := &http.Server{Addr: ":" + port, Handler: mux}
	failed := make(chan error, 2)
	go func() { failed <- s.ListenAndServe() }()
	echo, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer echo.Close()
	go func() { failed <- sendBack(echo) }()
	fmt.Println("serving on", port)
	select {
	case err := <-failed:
		fmt.Fprintln(os.Stderr, err)
		return 1
	case <-ctx.Done():
	}
	fmt.Println("asked to end")
	time.Sleep(linger)
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(end); err != nil {
		return 1
	}
	return 0
}

// sendBack returns datagrams to whom they came from until the socket is closed.
func sendBack(c net.PacketConn) error {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err == nil {
			_, _ = c.WriteTo(b[:n], from)
		}
	}
}

// pattern is endless data that is the same each time; each of its bytes tells its place.
type pattern struct{ at int64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at ^ p.at>>8 ^ p.at>>16)
		p.at++
	}
	return len(b), nil
}

func udp(args []string) int {
	size, err := strconv.Atoi(argument(args, 1, "1"))
	if err != nil || size < 1 || size > 64<<10 {
		return 2
	}
	c, err := net.Dial("udp", argument(args, 0, ""))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer c.Close()
	want := make([]byte, size)
	_, _ = (&pattern{}).Read(want)
	got := make([]byte, 64<<10)
	for try := 1; ; try++ { // datagrams may be lost, though not all of them
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err = c.Write(want); err == nil {
			var n int
			if n, err = c.Read(got); err == nil && !bytes.Equal(got[:n], want) {
				err = fmt.Errorf("%d bytes were sent, and %d others came back", size, n)
			}
		}
		if err == nil {
			fmt.Println(size, "bytes came back")
			return 0
		}
		if try == 5 {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

func bulk(args []string) int {
	size := argument(args, 1, "0")
	c := &http.Client{Timeout: time.Minute}
	resp, err := c.Get(argument(args, 0, "") + "/bulk?bytes=" + size)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer resp.Body.Close()
	n, got, want, all := int64(0), make([]byte, 64<<10), make([]byte, 64<<10), &pattern{}
	for {
		k, err := resp.Body.Read(got)
		_, _ = all.Read(want[:k])
		if !bytes.Equal(got[:k], want[:k]) {
			fmt.Fprintf(os.Stderr, "other bytes than were sent within %d after %d\n", k, n)
			return 1
		}
		n += int64(k)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "after %d bytes: %v\n", n, err)
			return 1
		}
	}
	fmt.Println(n, "bytes read")
	if fmt.Sprint(n) != size {
		return 1
	}
	return 0
}

// fetch makes one request on a connection of its own, so that services spread them.
func fetch(url string) (string, error) {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // whom it reaches is what tests look at
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	return string(b), err
}

func get(args []string) int {
	body, err := fetch(argument(args, 0, ""))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Print(body)
	return 0
}

func load(args []string) int {
	url := argument(args, 0, "")
	rate, err := strconv.Atoi(argument(args, 1, "10"))
	if err != nil || rate < 1 {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, seconds(argument(args, 2, "10")))
	defer cancel()
	var mu sync.Mutex
	answers, failures := map[string]int{}, 0
	var wg sync.WaitGroup
	t := time.NewTicker(time.Second / time.Duration(rate))
	defer t.Stop()
	for run := true; run; {
		select {
		case <-ctx.Done():
			run = false
		case <-t.C:
			wg.Go(func() {
				body, err := fetch(url)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failures++
					fmt.Printf("FAILED %s %v\n", time.Now().Format("15:04:05.000"), err)
					return
				}
				answers[body]++
			})
		}
	}
	wg.Wait()
	total := 0
	for body, n := range answers {
		total += n
		fmt.Printf("%d %s", n, body)
	}
	fmt.Printf("requests %d failures %d\n", total+failures, failures)
	if failures > 0 || total == 0 {
		return 1
	}
	return 0
}

func lookup(args []string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, argument(args, 0, ""))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	sort.Strings(addrs)
	for _, a := range addrs {
		fmt.Println(a)
	}
	return 0
}

func srv(args []string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, list, err := net.DefaultResolver.LookupSRV(ctx, "", "", argument(args, 0, ""))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprintf("%s:%d", r.Target, r.Port))
	}
	sort.Strings(out)
	for _, o := range out {
		fmt.Println(o)
	}
	return 0
}

// callAPI is a pod's usual way to the API: service name, mounted CA and token.
func callAPI(args []string) int {
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount/"
	ca, err1 := os.ReadFile(dir + "ca.crt")
	token, err2 := os.ReadFile(dir + "token")
	if err := errors.Join(err1, err2); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	req, err := http.NewRequest(argument(args, 0, "GET"), "https://kubernetes.default.svc"+argument(args, 1, "/"), nil)
	if err != nil {
		return 2
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	resp, err := c.Do(req)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return 1
	}
	fmt.Printf("%d %s\n", resp.StatusCode, b)
	return 0
}
