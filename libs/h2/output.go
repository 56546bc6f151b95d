package h2

import (
	"encoding/binary"
	"runtime"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// output gathers what is to be sent. Guarded by conn.mu.
//
//	writing: one goroutine sends what it has taken out of pending
type output struct {
	pending  []byte
	writing  bool
	control  int       // answers to control frames in pending
	room     sync.Cond // pending has shrunk, or the connection has ended
	last     int       // where the header of pending's last frame is, if it carries data of lastID
	lastID   uint32    // 0: it does not
	deadline time.Time // of the one who writes: when the network gives up
}

// buffers are shared by all connections: one that has nothing to send keeps none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 32<<10); return &b }}

func giveBack(b []byte) {
	if cap(b) > 0 && cap(b) <= 2*maxPending {
		b = b[:0]
		buffers.Put(&b)
	}
}

// head appends a frame's header.
func (o *output) head(length int, typ http2.FrameType, flags http2.Flags, id uint32) {
	if o.pending == nil {
		o.pending = (*buffers.Get().(*[]byte))[:0]
	}
	o.lastID = 0
	o.pending = append(o.pending, byte(length>>16), byte(length>>8), byte(length), byte(typ), byte(flags))
	o.pending = binary.BigEndian.AppendUint32(o.pending, id)
}

// data appends a part of a stream's body, to the last frame if that is the stream's and
// has room: handlers that write in crumbs do not make frames of crumbs.
func (o *output) data(id uint32, p []byte, limit int) {
	if o.lastID == id {
		if have := len(o.pending) - o.last - frameHead; have+len(p) <= limit {
			o.pending = append(o.pending, p...)
			o.resize(have + len(p))
			return
		}
	}
	at := len(o.pending)
	o.head(len(p), http2.FrameData, 0, id)
	o.pending = append(o.pending, p...)
	o.last, o.lastID = at, id
}

// finish ends a stream's body, in its last frame if that is not sent yet.
func (o *output) finish(id uint32) {
	if o.lastID == id {
		o.pending[o.last+4] |= byte(http2.FlagDataEndStream)
		o.lastID = 0
		return
	}
	o.head(0, http2.FrameData, http2.FlagDataEndStream, id)
}

const frameHead = 9 // bytes before a frame's payload. RFC 9113, section 4.1.

func (o *output) resize(length int) {
	h := o.pending[o.last:]
	h[0], h[1], h[2] = byte(length>>16), byte(length>>8), byte(length)
}

// headers appends a header block, in as many frames as the client's limit asks for.
func (o *output) headers(id uint32, block []byte, limit int, end bool) {
	typ, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		n := min(len(block), limit)
		if n == len(block) {
			flags |= http2.FlagHeadersEndHeaders
		}
		o.head(n, typ, flags, id)
		o.pending = append(o.pending, block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return
		}
		typ, flags = http2.FrameContinuation, 0
	}
}

func (o *output) settings(list ...http2.Setting) {
	o.head(6*len(list), http2.FrameSettings, 0, 0)
	for _, s := range list {
		o.pending = binary.BigEndian.AppendUint16(o.pending, uint16(s.ID))
		o.pending = binary.BigEndian.AppendUint32(o.pending, s.Val)
	}
}

func (o *output) settingsAck() { o.head(0, http2.FrameSettings, http2.FlagSettingsAck, 0) }

func (o *output) ping(ack bool, data [8]byte) {
	var flags http2.Flags
	if ack {
		flags = http2.FlagPingAck
	}
	o.head(8, http2.FramePing, flags, 0)
	o.pending = append(o.pending, data[:]...)
}

func (o *output) windowUpdate(id, n uint32) {
	o.head(4, http2.FrameWindowUpdate, 0, id)
	o.pending = binary.BigEndian.AppendUint32(o.pending, n)
}

func (o *output) reset(id uint32, code http2.ErrCode) {
	o.head(4, http2.FrameRSTStream, 0, id)
	o.pending = binary.BigEndian.AppendUint32(o.pending, uint32(code))
}

func (o *output) goAway(last uint32, code http2.ErrCode) {
	o.head(8, http2.FrameGoAway, 0, 0)
	o.pending = binary.BigEndian.AppendUint32(o.pending, last)
	o.pending = binary.BigEndian.AppendUint32(o.pending, uint32(code))
}

// push sends what is pending, unless somebody does already, and returns when that is
// sent; what has come meanwhile is left to a goroutine, so that no handler works for
// others without end. With gather, others may add theirs first. Called with mu held,
// which it lets go of while it sends.
func (c *conn) push(gather bool) {
	o := &c.out
	if o.writing || len(o.pending) == 0 || c.err != nil {
		return
	}
	o.writing = true
	if gather {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.send()
	if len(o.pending) > 0 && c.err == nil {
		c.spawn()
		return
	}
	c.written()
}

// leave has what is pending sent by a goroutine: for those who must not wait. Called with mu held.
func (c *conn) leave() {
	if c.out.writing || len(c.out.pending) == 0 || c.err != nil {
		return
	}
	c.out.writing = true
	c.spawn()
}

func (c *conn) spawn() {
	c.ended.Add(1)
	go func() {
		defer c.ended.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		for len(c.out.pending) > 0 && c.err == nil {
			c.send()
		}
		c.written()
	}()
}

func (c *conn) written() {
	c.out.writing = false
	c.out.room.Broadcast()
	if c.closing {
		c.failLocked(errConnEnded)
	}
}

// send writes what is pending now. Called with mu held by the one who set writing; it lets
// go of mu meanwhile.
func (c *conn) send() {
	buf := c.out.pending
	c.out.pending, c.out.control, c.out.lastID = nil, 0, 0
	c.mu.Unlock()
	var err error
	for rest := buf; len(rest) > 0 && err == nil; {
		// The deadline is moved only now and then: that costs as much as a small write.
		if now := time.Now(); c.out.deadline.Sub(now) < c.s.writeTimeout*2/3 {
			c.out.deadline = now.Add(c.s.writeTimeout)
			_ = c.net.SetWriteDeadline(c.out.deadline)
		}
		n := min(len(rest), sendPiece)
		err = c.write(rest[:n])
		rest = rest[n:]
	}
	giveBack(buf)
	c.mu.Lock()
	if err != nil {
		c.failLocked(errConnEnded)
	}
	c.out.room.Broadcast()
}

// write encrypts p and sends it: what is more than one record, all at once.
func (c *conn) write(p []byte) error {
	g, _ := c.net.NetConn().(*gathering)
	if g == nil || len(p) <= oneRecord {
		_, err := c.net.Write(p)
		return err
	}
	g.keep()
	_, err := c.net.Write(p)
	if e := g.release(); err == nil {
		err = e
	}
	return err
}
