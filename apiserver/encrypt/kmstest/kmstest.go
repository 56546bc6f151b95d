// Package kmstest is a KMS v2 plugin for tests: a gRPC server on a unix socket that seals
// with AES-GCM keys of its own. It keeps the rules of the API, can rotate its key, and
// can be stopped and started again with the keys that it had.
package kmstest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc"
	kms "k8s.io/kms/apis/v2"
)

// Plugin is the server. Its methods are safe for concurrent use.
type Plugin struct {
	kms.UnimplementedKeyManagementServiceServer
	path string

	mu       sync.Mutex // guards what follows
	keys     []cipher.AEAD
	server   *grpc.Server
	done     chan struct{}
	decrypts int
}

// New returns a plugin with one key that listens at path.
func New(path string) (*Plugin, error) {
	p := &Plugin{path: path}
	p.Rotate()
	return p, p.Start()
}

// Start listens, again after Stop.
func (p *Plugin) Start() error {
	if err := os.Remove(p.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", p.path)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	server, done := grpc.NewServer(), make(chan struct{})
	p.server, p.done = server, done
	kms.RegisterKeyManagementServiceServer(server, p)
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends with Stop
	}()
	return nil
}

// Stop ends the server and keeps the keys.
func (p *Plugin) Stop() {
	p.mu.Lock()
	server, done := p.server, p.done
	p.mu.Unlock()
	server.Stop()
	<-done
}

// Rotate adds a key, which new seeds are sealed with.
func (p *Plugin) Rotate() {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the size is right
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, a)
}

// Decrypts is how often a seed was opened.
func (p *Plugin) Decrypts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.decrypts
}

func (p *Plugin) newest() (string, cipher.AEAD) {
	return fmt.Sprintf("key-%d", len(p.keys)), p.keys[len(p.keys)-1]
}

// Status is the API's.
func (p *Plugin) Status(context.Context, *kms.StatusRequest) (*kms.StatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, _ := p.newest()
	return &kms.StatusResponse{Version: "v2", Healthz: "ok", KeyId: id}, nil
}

// Encrypt is the API's.
func (p *Plugin) Encrypt(_ context.Context, r *kms.EncryptRequest) (*kms.EncryptResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, a := p.newest()
	nonce := make([]byte, a.NonceSize())
	_, _ = rand.Read(nonce)
	return &kms.EncryptResponse{
		KeyId: id, Ciphertext: a.Seal(nonce, nonce, r.Plaintext, nil), Annotations: map[string][]byte{"made.by.kmstest.example": []byte(id)},
	}, nil
}

// Decrypt is the API's.
func (p *Plugin) Decrypt(_ context.Context, r *kms.DecryptRequest) (*kms.DecryptResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.decrypts++
	if string(r.Annotations["made.by.kmstest.example"]) != r.KeyId {
		return nil, fmt.Errorf("annotations %q are not those of key %q", r.Annotations, r.KeyId)
	}
	var n int
	if _, err := fmt.Sscanf(r.KeyId, "key-%d", &n); err != nil || n < 1 || n > len(p.keys) {
		return nil, fmt.Errorf("key %q is not known", r.KeyId)
	}
	a := p.keys[n-1]
	if len(r.Ciphertext) < a.NonceSize() {
		return nil, errors.New("the text is too short")
	}
	plain, err := a.Open(nil, r.Ciphertext[:a.NonceSize()], r.Ciphertext[a.NonceSize():], nil)
	return &kms.DecryptResponse{Plaintext: plain}, err
}
