package encrypt

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	kms "k8s.io/kms/apis/v2"

	"github.com/keelson/keelson/libs/run"
)

const (
	// askEvery and askAgain are the pauses between questions for a plugin's status, in health and
	// otherwise; a seed whose key has not been confirmed for confirmed is not written with any more.
	// Source: upstream's intervals.
	askEvery  = time.Minute
	askAgain  = 10 * time.Second
	firstAsk  = 200 * time.Millisecond
	confirmed = 3 * time.Minute

	seedSize, infoSize = 32, 32
	// maxSeeds bounds the opened seeds that are kept; there is one for each start of a server and
	// each key of the plugin.
	maxSeeds = 4096
	// Limits of what a plugin may answer. Source: the KMS v2 API.
	maxKeyID, maxSealedSeed, maxAnnotations = 1 << 10, 1 << 10, 32 << 10
)

// plugin is a KMS v2 provider: the plugin seals one seed, and each value is sealed with a key
// that is derived from it and from random bytes of its own. The seed is changed when
// the plugin's key is.
//
// Source: KEP-3299, "KMS v2 improvements".
type plugin struct {
	named
	name    string
	path    string // of the socket; "@name" for an abstract one
	timeout time.Duration
	metrics *Metrics

	client atomic.Pointer[kms.KeyManagementServiceClient] // nil before start: values may be read earlier
	now    atomic.Pointer[seed]
	err    atomic.Pointer[error] // of the last question

	mu    sync.Mutex // guards seeds
	seeds map[[32]byte]opener
}

// seed is what values are sealed with.
type seed struct {
	secret      []byte
	sealed      []byte
	keyID       string
	annotations map[string][]byte
	until       time.Time
}

// opener opens what was sealed with one seed, or with one key.
type opener struct {
	seed []byte
	aead cipher.AEAD // instead of seed: an older kind of value
}

var errNotAsked = errors.New("the plugin has not answered yet")

func newPlugin(name, path string, timeout time.Duration, m *Metrics) *plugin {
	if strings.HasPrefix(path, "/@") {
		path = path[1:]
	}
	p := &plugin{named: named("k8s:enc:kms:v2:" + name + ":"), name: name, path: path, timeout: timeout, metrics: m, seeds: map[[32]byte]opener{}}
	p.err.Store(&errNotAsked)
	return p
}

// start connects and keeps the seed current until stop.
func (p *plugin) start(g *run.Group) (stop func()) {
	ctx, cancel := context.WithCancel(g.Context())
	// A client without a server is no error: calls fail and say so.
	conn, err := grpc.NewClient("passthrough:///"+p.path,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", addr)
		}))
	if err != nil {
		p.err.Store(&err)
		return cancel
	}
	client := kms.NewKeyManagementServiceClient(conn)
	p.client.Store(&client)
	g.Go("kms "+p.name, func(context.Context) error {
		defer conn.Close()
		healthy := false
		for {
			err := p.ask(ctx)
			p.err.Store(&err)
			pause := askEvery
			switch {
			case err == nil:
				healthy = true
			case healthy:
				pause = askAgain
			default:
				pause = firstAsk // nothing can be written before the first answer
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
		}
	})
	return cancel
}

func (p *plugin) healthy() error { return *p.err.Load() }

// call bounds and measures one call of the plugin.
func (p *plugin) call(ctx context.Context, method string, f func(ctx context.Context, c kms.KeyManagementServiceClient) error) error {
	client := p.client.Load()
	if client == nil {
		return errNotAsked
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	started := time.Now()
	err := f(ctx, *client)
	p.metrics.called(p.name, method, status.Code(err).String(), time.Since(started))
	return err
}

// ask confirms the seed's key, or takes a new seed when the plugin has another key.
func (p *plugin) ask(ctx context.Context) error {
	until := time.Now().Add(confirmed)
	var s *kms.StatusResponse
	err := p.call(ctx, "/v2.KeyManagementService/Status", func(ctx context.Context, c kms.KeyManagementServiceClient) (err error) {
		s, err = c.Status(ctx, &kms.StatusRequest{})
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("status: %w", err)
	case s.Version != "v2" && s.Version != "v2beta1":
		return fmt.Errorf("the plugin speaks version %q, not v2", s.Version)
	case s.Healthz != "ok":
		return fmt.Errorf("the plugin says that it is %q, not \"ok\"", s.Healthz)
	case s.KeyId == "" || len(s.KeyId) > maxKeyID:
		return fmt.Errorf("the plugin's key ID has %d bytes, not 1 to %d", len(s.KeyId), maxKeyID)
	}
	if now := p.now.Load(); now != nil && now.keyID == s.KeyId {
		next := *now
		next.until = until
		p.now.Store(&next)
		return nil
	}
	secret := make([]byte, seedSize)
	_, _ = rand.Read(secret)
	var e *kms.EncryptResponse
	err = p.call(ctx, "/v2.KeyManagementService/Encrypt", func(ctx context.Context, c kms.KeyManagementServiceClient) (err error) {
		e, err = c.Encrypt(ctx, &kms.EncryptRequest{Plaintext: secret, Uid: uuid.NewString()})
		return err
	})
	if err != nil {
		return fmt.Errorf("encrypt a seed: %w", err)
	}
	size := 0
	for k, v := range e.Annotations {
		size += len(k) + len(v)
	}
	switch {
	case e.KeyId != s.KeyId:
		return fmt.Errorf("the plugin has encrypted with key %q while its status says %q", e.KeyId, s.KeyId)
	case len(e.Ciphertext) == 0 || len(e.Ciphertext) > maxSealedSeed:
		return fmt.Errorf("the encrypted seed has %d bytes, not 1 to %d", len(e.Ciphertext), maxSealedSeed)
	case size > maxAnnotations:
		return fmt.Errorf("annotations have %d bytes, more than %d", size, maxAnnotations)
	}
	next := &seed{secret: secret, sealed: e.Ciphertext, keyID: e.KeyId, annotations: e.Annotations, until: until}
	p.keep(next.envelope().id(), opener{seed: secret})
	p.now.Store(next)
	return nil
}

func (s *seed) envelope() envelope {
	return envelope{keyID: s.keyID, sealed: s.sealed, annotations: s.annotations, kind: kindSeed}
}

func (p *plugin) keep(id [32]byte, o opener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.seeds) >= maxSeeds {
		clear(p.seeds)
	}
	p.seeds[id] = o
	p.metrics.seeds(p.name, len(p.seeds))
}

func (p *plugin) seal(_ context.Context, plain, aad []byte) ([]byte, error) {
	s := p.now.Load()
	if s == nil || time.Now().After(s.until) {
		err := p.healthy()
		if err == nil {
			err = errNotAsked
		}
		return nil, fmt.Errorf("KMS provider %s: %w", p.name, err)
	}
	info := make([]byte, infoSize, infoSize+len(plain)+64)
	_, _ = rand.Read(info)
	a, err := derived(s.secret, info)
	if err != nil {
		return nil, err
	}
	e := s.envelope()
	e.data = gcmSeal(a, info, plain, aad)
	return e.append(nil), nil
}

// derived is the cipher of one value.
func derived(secret, info []byte) (cipher.AEAD, error) {
	key, err := hkdf.Expand(sha256.New, secret, string(info), 32)
	if err != nil {
		return nil, err
	}
	return aead(key)
}

func (p *plugin) open(ctx context.Context, value, aad []byte) ([]byte, bool, error) {
	e, err := readEnvelope(value)
	if err != nil {
		return nil, false, err
	}
	id := e.id()
	p.mu.Lock()
	o, known := p.seeds[id]
	p.mu.Unlock()
	if !known {
		var d *kms.DecryptResponse
		err := p.call(ctx, "/v2.KeyManagementService/Decrypt", func(ctx context.Context, c kms.KeyManagementServiceClient) (err error) {
			d, err = c.Decrypt(ctx, &kms.DecryptRequest{
				Ciphertext: e.sealed, Uid: uuid.NewString(), KeyId: e.keyID, Annotations: e.annotations,
			})
			return err
		})
		if err != nil {
			return nil, false, fmt.Errorf("KMS provider %s: decrypt the seed of key %q: %w", p.name, e.keyID, err)
		}
		if o.seed = d.Plaintext; e.kind == kindKey {
			if o.aead, err = aead(d.Plaintext); err != nil {
				return nil, false, err
			}
		} else if len(o.seed) < seedSize {
			return nil, false, fmt.Errorf("KMS provider %s: the seed has %d bytes, fewer than %d", p.name, len(o.seed), seedSize)
		}
		p.keep(id, o)
	}
	data := e.data
	a := o.aead
	if a == nil {
		if len(data) < infoSize {
			return nil, false, errShort
		}
		if a, err = derived(o.seed, data[:infoSize]); err != nil {
			return nil, false, err
		}
		data = data[infoSize:]
	}
	plain, err := gcmOpen(a, data, aad)
	now := p.now.Load()
	return plain, e.kind != kindSeed || now == nil || e.keyID != now.keyID, err
}

// envelope is the stored message: what is sealed, and what opens it. Source: EncryptedObject of
// KMS v2, whose field numbers stand in append.
type envelope struct {
	data        []byte
	keyID       string
	sealed      []byte
	annotations map[string][]byte
	kind        uint64
}

const (
	kindKey  = 0 // sealed is an AES-GCM key
	kindSeed = 1 // sealed is a seed; the first 32 bytes of data are the info of HKDF
)

func (e envelope) append(out []byte) []byte {
	bytesField := func(n protowire.Number, v []byte) {
		out = protowire.AppendBytes(protowire.AppendTag(out, n, protowire.BytesType), v)
	}
	bytesField(1, e.data)
	bytesField(2, []byte(e.keyID))
	bytesField(3, e.sealed)
	for _, k := range slices.Sorted(maps.Keys(e.annotations)) {
		pair := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), k)
		pair = protowire.AppendBytes(protowire.AppendTag(pair, 2, protowire.BytesType), e.annotations[k])
		bytesField(4, pair)
	}
	if e.kind != kindKey {
		out = protowire.AppendVarint(protowire.AppendTag(out, 5, protowire.VarintType), e.kind)
	}
	return out
}

// id names the key or seed, not the value.
func (e envelope) id() [32]byte {
	e.data = nil
	return sha256.Sum256(e.append(nil))
}

func readEnvelope(b []byte) (e envelope, err error) {
	err = eachField(b, func(n protowire.Number, v []byte, x uint64) error {
		switch n {
		case 1:
			e.data = v
		case 2:
			e.keyID = string(v)
		case 3:
			e.sealed = v
		case 4:
			var key string
			var val []byte
			err := eachField(v, func(n protowire.Number, v []byte, _ uint64) error {
				switch n {
				case 1:
					key = string(v)
				case 2:
					val = v
				}
				return nil
			})
			if err != nil {
				return err
			}
			if e.annotations == nil {
				e.annotations = map[string][]byte{}
			}
			e.annotations[key] = val
		case 5:
			e.kind = x
		}
		return nil
	})
	switch {
	case err != nil:
		return e, fmt.Errorf("envelope: %w", err)
	case e.keyID == "" || len(e.sealed) == 0 || len(e.data) == 0:
		return e, fmt.Errorf("envelope: %w", errShort)
	case e.kind > kindSeed:
		return e, fmt.Errorf("envelope: kind of key %d is not known", e.kind)
	}
	return e, nil
}

func eachField(b []byte, f func(n protowire.Number, v []byte, x uint64) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var v []byte
		var x uint64
		switch typ {
		case protowire.BytesType:
			v, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			x, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(num, v, x); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
