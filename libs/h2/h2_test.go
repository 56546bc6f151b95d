package h2_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/keelson/keelson/libs/h2"
	"github.com/keelson/keelson/libs/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves h, and returns the server and a client of net/http.
func start(t *testing.T, h http.HandlerFunc, change func(*http.Server)) (*httptest.Server, *http.Client) {
	t.Helper()
	ts := httptest.NewUnstartedServer(h)
	ts.Config.ErrorLog = log.New(io.Discard, "", 0)
	ts.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 100}
	if change != nil {
		change(ts.Config)
	}
	h2.Configure(ts.Config)
	ts.TLS = &tls.Config{NextProtos: []string{"h2"}, DynamicRecordSizingDisabled: true}
	ts.Listener = h2.Listener(counting{ts.Listener})
	ts.StartTLS()
	tr := &http.Transport{TLSClientConfig: ts.Client().Transport.(*http.Transport).TLSClientConfig, ForceAttemptHTTP2: true}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		ts.CloseClientConnections()
		ts.Close()
	})
	return ts, &http.Client{Transport: tr, Timeout: 2 * time.Minute}
}

// counting counts the writes of all connections to the kernel.
type counting struct{ net.Listener }

var writes atomic.Int64

type counted struct{ net.Conn }

func (l counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return counted{c}, err
}

func (c counted) Write(p []byte) (int, error) {
	writes.Add(1)
	return c.Conn.Write(p)
}

// The records of a large answer reach the kernel three at a time.
func TestPieces(t *testing.T) {
	const part, parts = 48<<10 - 64, 100
	ts, c := start(t, func(w http.ResponseWriter, _ *http.Request) {
		b := bytes.Repeat([]byte("x"), part)
		for range parts {
			_, _ = w.Write(b)
		}
	}, nil)
	get(t, c, ts.URL)
	before := writes.Load()
	if _, body := get(t, c, ts.URL); len(body) != part*parts {
		t.Fatalf("%d bytes have come, %d were sent", len(body), part*parts)
	}
	// Windows cut some pieces in two.
	if n := writes.Load() - before; n > parts+parts/4 {
		t.Errorf("%d writes for %d pieces", n, parts)
	}
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// What handlers do, and what a client of net/http sees of it.
func TestAnswers(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB: more than any window
	type want struct {
		code   int
		body   string
		header map[string]string
	}
	rows := []struct {
		name    string
		method  string
		handler http.HandlerFunc
		want    want
	}{
		{"nothing at all", "GET", func(http.ResponseWriter, *http.Request) {}, want{200, "", map[string]string{"Content-Length": "0"}}},
		{"a short body has its length and type", "GET", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
			want{200, "<html>", map[string]string{"Content-Length": "6", "Content-Type": "text/html; charset=utf-8"}}},
		{"a code and a header", "GET", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Mine", "a")
			w.WriteHeader(201)
			w.Header().Set("X-Late", "b")
			io.WriteString(w, "made")
		}, want{201, "made", map[string]string{"X-Mine": "a", "X-Late": ""}}},
		{"no content", "GET", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(204)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				panic(err)
			}
		}, want{204, "", nil}},
		{"a body larger than all windows", "GET", func(w http.ResponseWriter, _ *http.Request) { w.Write(big) }, want{200, string(big), nil}},
		{"a body of crumbs", "GET", func(w http.ResponseWriter, _ *http.Request) {
			for range 20000 {
				io.WriteString(w, "abc")
			}
		}, want{200, strings.Repeat("abc", 20000), nil}},
		{"HEAD has the header only", "HEAD", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") },
			want{200, "", map[string]string{"Content-Length": "5"}}},
		{"hop by hop fields stay here", "GET", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			w.Header().Set("Transfer-Encoding", "chunked")
		}, want{200, "", map[string]string{"Connection": ""}}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			ts, c := start(t, row.handler, nil)
			rq, _ := http.NewRequest(row.method, ts.URL, nil)
			resp, err := c.Do(rq)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != row.want.code || string(body) != row.want.body {
				t.Fatalf("got %d, %d bytes, %v; want %d, %d bytes", resp.StatusCode, len(body), err, row.want.code, len(row.want.body))
			}
			if resp.ProtoMajor != 2 || resp.Header.Get("Date") == "" {
				t.Errorf("got protocol %s, date %q", resp.Proto, resp.Header.Get("Date"))
			}
			for k, v := range row.want.header {
				if got := resp.Header.Get(k); got != v {
					t.Errorf("%s: got %q, want %q", k, got, v)
				}
			}
		})
	}
}

func TestRequest(t *testing.T) {
	var got *http.Request
	ts, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Write(b)
	}, nil)
	for _, size := range []int{0, 1, 5000, 300 << 10, 3 << 20} {
		body := bytes.Repeat([]byte("x"), size)
		rq, _ := http.NewRequest("POST", ts.URL+"/a%2Fb?c=d", bytes.NewReader(body))
		rq.Header.Set("X-Two", "1")
		rq.Header.Add("X-Two", "2")
		rq.Header.Set("Expect", "100-continue")
		resp, err := c.Do(rq)
		if err != nil {
			t.Fatal(err)
		}
		back, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(back, body) {
			t.Fatalf("size %d: got %d bytes back, %v", size, len(back), err)
		}
		if got.Method != "POST" || got.RequestURI != "/a%2Fb?c=d" || got.URL.Query().Get("c") != "d" || got.ContentLength != int64(size) ||
			len(got.Header["X-Two"]) != 2 || got.TLS == nil || got.RemoteAddr == "" || "https://"+got.Host != ts.URL {
			t.Fatalf("got %+v", got)
		}
	}
}

func TestTrailers(t *testing.T) {
	ts, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Sum", "too early") // declared: belongs behind the body
		io.WriteString(w, r.Trailer.Get("X-Asked"))
		w.(http.Flusher).Flush()
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-More", "43")
	}, nil)
	rq, _ := http.NewRequest("POST", ts.URL, io.MultiReader(strings.NewReader("body")))
	rq.Trailer = http.Header{"X-Asked": {"yes"}}
	resp, err := c.Do(rq)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "yes" || resp.Header.Get("X-Sum") != "" || resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-More") != "43" {
		t.Fatalf("got %q, %v, %v, %v", b, err, resp.Header, resp.Trailer)
	}
}

// Many streams of one connection at once, with bodies both ways, arrive whole.
func TestManyAtOnce(t *testing.T) {
	ts, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		for len(b) > 0 {
			n := min(len(b), 1+len(b)/3)
			w.Write(b[:n])
			if n%2 == 0 {
				w.(http.Flusher).Flush()
			}
			b = b[n:]
		}
	}, nil)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for range 8 {
				body := make([]byte, rnd.IntN(50_000))
				for j := range body {
					body[j] = byte(rnd.Uint32())
				}
				resp, err := c.Post(ts.URL, "application/octet-stream", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				back, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(back, body) {
					t.Errorf("got %d bytes of %d back, %v", len(back), len(body), err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A stream whose client reads nothing holds up neither the others of its connection nor its end.
func TestSlowStream(t *testing.T) {
	ended := make(chan error, 1)
	ts, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/flood" {
			io.WriteString(w, "quick")
			return
		}
		for r.Context().Err() == nil {
			w.Write(make([]byte, 64<<10))
		}
		ended <- context.Cause(r.Context())
	}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	rq, _ := http.NewRequestWithContext(ctx, "GET", ts.URL+"/flood", nil)
	resp, err := c.Do(rq)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, body := get(t, c, ts.URL); body != "quick" {
			t.Fatalf("got %q", body)
		}
	}
	cancel()
	resp.Body.Close()
	select {
	case err := <-ended:
		if err == nil {
			t.Fatal("the context ended without a cause")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the handler did not end with its client")
	}
}

func TestFlush(t *testing.T) {
	next := make(chan string)
	ts, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := errors.Join(rc.SetWriteDeadline(time.Time{}), rc.EnableFullDuplex(), rc.Flush()); err != nil {
			t.Error(err)
		}
		for s := range next {
			io.WriteString(w, s)
			rc.Flush()
		}
	}, nil)
	resp, err := c.Get(ts.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for i := range 100 {
		want := fmt.Sprintf("event %d;", i)
		next <- want
		got := make([]byte, len(want))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	close(next)
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
}

func TestPanicAndDeadline(t *testing.T) {
	ts, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/panic":
			panic("on purpose")
		case "/abort":
			w.Write(make([]byte, 10))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/short":
			w.Header().Set("Content-Length", "10")
			w.WriteHeader(200)
			io.WriteString(w, "123")
		case "/write":
			http.NewResponseController(w).SetWriteDeadline(time.Now().Add(-time.Second))
			<-r.Context().Done()
		case "/read":
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(-time.Second))
			_, err := r.Body.Read(make([]byte, 1))
			fmt.Fprint(w, err)
		}
	}, nil)
	for _, path := range []string{"/panic", "/abort", "/short", "/write"} {
		resp, err := c.Get(ts.URL + path)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: the client took the answer for whole", path)
		}
	}
	pr, pw := io.Pipe()
	defer pw.Close()
	resp, err := c.Post(ts.URL+"/read", "text/plain", pr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), "timeout") {
		t.Errorf("read deadline: got %q", b)
	}
}

// Shutdown lets a running request end, and then the connection does.
func TestShutdown(t *testing.T) {
	began, end := make(chan bool), make(chan bool)
	ts, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-end
		io.WriteString(w, "whole")
	}, nil)
	answer := make(chan string)
	go func() {
		_, body := get(t, c, ts.URL)
		answer <- body
	}()
	<-began
	down := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		down <- ts.Config.Shutdown(ctx)
	}()
	select {
	case err := <-down:
		t.Fatalf("shut down before the request had ended: %v", err)
	case <-time.After(50 * time.Millisecond): // nothing tells that it waits
	}
	close(end)
	if got := <-answer; got != "whole" {
		t.Errorf("got %q", got)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// raw is a client that says what it likes.
type raw struct {
	t   *testing.T
	c   *tls.Conn
	fr  *http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func dial(t *testing.T, ts *httptest.Server, settings ...http2.Setting) *raw {
	t.Helper()
	cfg := ts.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	cfg.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", ts.Listener.Addr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	r := &raw{t: t, c: c, fr: http2.NewFramer(c, c)}
	r.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.enc = hpack.NewEncoder(&r.buf)
	io.WriteString(c, http2.ClientPreface)
	r.fr.WriteSettings(settings...)
	return r
}

func (r *raw) headers(id uint32, end bool, fields ...string) {
	r.buf.Reset()
	if len(fields) == 0 {
		fields = []string{":method", "GET", ":scheme", "https", ":authority", "x", ":path", "/"}
	}
	for i := 0; i < len(fields); i += 2 {
		r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.buf.Bytes(), EndStream: end, EndHeaders: true})
}

// until reads frames until f accepts one.
func (r *raw) until(what string, f func(http2.Frame) bool) {
	r.t.Helper()
	for {
		fr, err := r.fr.ReadFrame()
		if err != nil {
			r.t.Fatalf("waiting for %s: %v", what, err)
		}
		if f(fr) {
			return
		}
	}
}

func (r *raw) untilReset(id uint32, code http2.ErrCode) {
	r.t.Helper()
	r.until(fmt.Sprint("a reset with ", code), func(f http2.Frame) bool {
		rst, ok := f.(*http2.RSTStreamFrame)
		return ok && rst.StreamID == id && rst.ErrCode == code
	})
}

func (r *raw) untilAway(code http2.ErrCode) {
	r.t.Helper()
	r.until(fmt.Sprint("GOAWAY with ", code), func(f http2.Frame) bool {
		a, ok := f.(*http2.GoAwayFrame)
		return ok && a.ErrCode == code
	})
}

// What a client may not do costs it the stream or the connection. RFC 9113, sections 5 to 8.
func TestFaults(t *testing.T) {
	post := []string{":method", "POST", ":scheme", "https", ":authority", "x", ":path", "/"}
	rows := []struct {
		name string
		do   func(*raw)
	}{
		{"a ping is answered", func(r *raw) {
			r.fr.WritePing(false, [8]byte{1, 2, 3})
			r.until("the answer", func(f http2.Frame) bool {
				p, ok := f.(*http2.PingFrame)
				return ok && p.IsAck() && p.Data == [8]byte{1, 2, 3}
			})
		}},
		{"a stream with an even number", func(r *raw) { r.headers(2, true); r.untilAway(http2.ErrCodeProtocol) }},
		{"data on a stream that never was", func(r *raw) { r.fr.WriteData(9, true, nil); r.untilAway(http2.ErrCodeProtocol) }},
		{"a window of more than 31 bits", func(r *raw) {
			r.fr.WriteWindowUpdate(0, 1<<31-1)
			r.untilAway(http2.ErrCodeFlowControl)
		}},
		{"a stream's window of more than 31 bits", func(r *raw) {
			r.headers(1, false, post...)
			r.fr.WriteWindowUpdate(1, 1<<31-1)
			r.untilReset(1, http2.ErrCodeFlowControl)
		}},
		{"a frame larger than allowed", func(r *raw) {
			r.headers(1, false, post...)
			r.fr.WriteData(1, false, make([]byte, 17<<10))
			r.untilAway(http2.ErrCodeFrameSize)
		}},
		{"a body longer than declared", func(r *raw) {
			r.headers(1, false, append(post, "content-length", "3")...)
			r.fr.WriteData(1, false, []byte("1234"))
			r.untilReset(1, http2.ErrCodeProtocol)
		}},
		{"a body shorter than declared", func(r *raw) {
			r.headers(1, false, append(post, "content-length", "3")...)
			r.fr.WriteData(1, true, []byte("1"))
			r.untilReset(1, http2.ErrCodeProtocol)
		}},
		{"more of a body than the window", func(r *raw) {
			r.headers(1, false, append(post, ":path", "/hang")...)
			r.headers(3, false, ":method", "POST", ":scheme", "https", ":authority", "x", ":path", "/hang")
			for range 17 {
				r.fr.WriteData(3, false, make([]byte, 16<<10))
			}
			r.untilReset(3, http2.ErrCodeFlowControl)
		}},
		{"a field that belongs to a connection", func(r *raw) {
			r.headers(1, true, append(post, "connection", "close")...)
			r.untilReset(1, http2.ErrCodeProtocol)
		}},
		{"no path", func(r *raw) {
			r.headers(1, true, ":method", "GET", ":scheme", "https")
			r.untilReset(1, http2.ErrCodeProtocol)
		}},
		{"a name with capitals", func(r *raw) {
			r.headers(1, true, append(post, "X-Big", "1")...)
			r.untilReset(1, http2.ErrCodeProtocol)
		}},
		{"headers that are too many", func(r *raw) {
			fields := []string{":method", "GET", ":scheme", "https", ":authority", "x", ":path", "/"}
			for i := range 20 {
				fields = append(fields, fmt.Sprint("x-", i), strings.Repeat("y", 500))
			}
			r.headers(1, true, fields...)
			r.until("431", func(f http2.Frame) bool {
				h, ok := f.(*http2.MetaHeadersFrame)
				return ok && h.PseudoValue("status") == "431"
			})
		}},
		{"a push", func(r *raw) {
			r.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
			r.untilAway(http2.ErrCodeProtocol)
		}},
		{"more streams than allowed", func(r *raw) {
			for i := range uint32(101) {
				r.headers(2*i+1, true, ":method", "GET", ":scheme", "https", ":authority", "x", ":path", "/hang")
			}
			r.untilReset(201, http2.ErrCodeRefusedStream)
		}},
		{"answers that nobody reads", func(r *raw) {
			// More than the sockets hold. The connection ends while we write, or after.
			for range 400_000 {
				if r.fr.WritePing(false, [8]byte{}) != nil {
					return
				}
			}
			r.t.Error("the connection lives")
		}},
		{"streams reset as fast as they are opened", func(r *raw) {
			for i := range uint32(1000) {
				r.headers(2*i+1, true, ":method", "GET", ":scheme", "https", ":authority", "x", ":path", "/hang")
				r.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			}
			r.headers(2001, true)
			r.until("the answer to the last", func(f http2.Frame) bool {
				d, ok := f.(*http2.DataFrame)
				return ok && d.StreamID == 2001 && d.StreamEnded()
			})
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var mu sync.Mutex
			running, most := 0, 0
			ts, _ := start(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				if r.URL.Path == "/hang" {
					<-r.Context().Done()
				} else {
					io.Copy(io.Discard, r.Body)
				}
				mu.Lock()
				running--
				mu.Unlock()
			}, func(s *http.Server) { s.MaxHeaderBytes = 8 << 10 })
			row.do(dial(t, ts))
			mu.Lock()
			defer mu.Unlock()
			if most > 100 {
				t.Errorf("%d handlers ran at once; the bound is 100", most)
			}
		})
	}
}

// Windows that the client changes while answers wait for them; the connection's own is shared in turn.
func TestWindows(t *testing.T) {
	const size, step = 1 << 20, 16 << 10
	ts, _ := start(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, size)) }, nil)
	r := dial(t, ts, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	got, all := map[uint32]int{}, 0
	take := func(want int) {
		r.t.Helper()
		for all < want {
			r.until(fmt.Sprintf("%d bytes after %d", want, all), func(f http2.Frame) bool {
				d, ok := f.(*http2.DataFrame)
				if ok {
					got[d.StreamID] += len(d.Data())
					all += len(d.Data())
				}
				return ok
			})
		}
	}
	for id := uint32(1); id <= 5; id += 2 {
		r.headers(id, true)
	}
	r.fr.WriteWindowUpdate(3, 1000)
	take(1000)
	if got[3] != 1000 {
		t.Fatalf("got %v, want 1000 bytes of stream 3", got)
	}
	r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2 << 20})
	take(65535) // the connection's window
	for all < 3*size && max(got[1], got[3], got[5]) < size {
		r.fr.WriteWindowUpdate(0, step)
		take(min(all+step, 3*size))
	}
	if min(got[1], got[3], got[5]) < size/4 {
		t.Errorf("one stream got far more than its part: %v", got)
	}
	r.fr.WriteWindowUpdate(0, 3*size)
	take(3 * size)
}

// Connections that are not used end; those whose client has died do too.
func TestIdleAndDead(t *testing.T) {
	ts, _ := start(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, func(s *http.Server) {
		s.IdleTimeout = 200 * time.Millisecond
		s.HTTP2.SendPingTimeout, s.HTTP2.PingTimeout = 100*time.Millisecond, 200*time.Millisecond
	})
	idle := dial(t, ts)
	idle.untilAway(http2.ErrCodeNo)
	dead := dial(t, ts)
	dead.headers(1, true)
	dead.until("a ping", func(f http2.Frame) bool { _, ok := f.(*http2.PingFrame); return ok })
	if _, err := io.ReadAll(dead.c); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Fatal("a client that does not answer keeps its connection")
	}
}

func BenchmarkGet(b *testing.B) {
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1000)) }))
	h2.Configure(ts.Config)
	ts.TLS = &tls.Config{NextProtos: []string{"h2"}}
	ts.StartTLS()
	defer ts.Close()
	tr := &http.Transport{TLSClientConfig: ts.Client().Transport.(*http.Transport).TLSClientConfig, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	for b.Loop() {
		resp, err := c.Get(ts.URL)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// workers counts the goroutines that run handlers or wait for one.
func workers() int {
	b := make([]byte, 1<<20)
	return bytes.Count(b[:runtime.Stack(b, true)], []byte("h2.(*workers).work("))
}

// Requests in turn share a goroutine; of many at once few stay to wait, and none after the last connection.
func TestWorkers(t *testing.T) {
	var all sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	ts, c := start(t, func(_ http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/many":
			all.Done()
			all.Wait()
		case "/end":
			runtime.Goexit()
		default:
			b := make([]byte, 64)
			b = b[:runtime.Stack(b, false)]
			mu.Lock()
			seen[string(b[:bytes.IndexByte(b, '[')])] = true
			mu.Unlock()
		}
	}, nil)
	const many = 90
	all.Add(many)
	var clients sync.WaitGroup
	for range many {
		clients.Go(func() { get(t, c, ts.URL+"/many") })
	}
	clients.Wait()
	few := func(most int) func() (bool, string) {
		return func() (bool, string) {
			n := workers()
			return n <= most, fmt.Sprintf("%d workers, want at most %d", n, most)
		}
	}
	testkit.Eventually(t, 10*time.Second, few(32))
	for range 20 {
		get(t, c, ts.URL)
	}
	if len(seen) > 10 { // an answer is there a moment before its worker waits
		t.Errorf("20 requests in turn ran on %d goroutines", len(seen))
	}
	if _, err := c.Get(ts.URL + "/end"); err == nil {
		t.Error("a handler that ended its goroutine has answered")
	}
	get(t, c, ts.URL)
	c.CloseIdleConnections()
	testkit.Eventually(t, 10*time.Second, few(0)) // after the last connection
}
