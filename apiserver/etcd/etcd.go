// Package etcd starts and stops the embedded etcd member, and looks after its
// space; the store above it speaks to it without a socket.
//
// The main call is [Start]. It promises: a data directory of another format is an
// error that says so; peers and clients are served over TLS with client
// certificates, or, while no certificates are given, on sockets inside the data
// directory that nobody else can reach; Close ends everything it started.
//
// To debug, use etcdctl against the client address, or the log at debug level.
package etcd

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Config of the member. Flags are etcd's, with "etcd-" in front.
type Config struct {
	Name    string `yaml:"name" flag:"etcd-name" help:"name of the embedded etcd member, unique in its cluster"`
	DataDir string `yaml:"dataDir" flag:"etcd-data-dir" help:"directory of the embedded etcd"`
	// Listen and advertise are URLs. Empty: a socket in the data directory.
	ListenClients     []string `yaml:"listenClients" flag:"etcd-listen-client-urls" help:"addresses for etcd clients of the embedded etcd; empty: a socket inside the data directory"`
	ListenPeers       []string `yaml:"listenPeers" flag:"etcd-listen-peer-urls" help:"addresses for the other etcd members; empty: a socket inside the data directory"`
	AdvertiseClients  []string `yaml:"advertiseClients" flag:"etcd-advertise-client-urls" help:"client addresses as others reach them; default: the listen addresses"`
	AdvertisePeers    []string `yaml:"advertisePeers" flag:"etcd-initial-advertise-peer-urls" help:"peer addresses as others reach them; default: the listen addresses"`
	InitialCluster    string   `yaml:"initialCluster" flag:"etcd-initial-cluster" help:"members at the first start, name=peer-url,...; default: this one"`
	InitialState      string   `yaml:"initialState" flag:"etcd-initial-cluster-state" help:"\"new\", or \"existing\" to join"`
	CertFile          string   `yaml:"certFile" flag:"etcd-cert-file" help:"server certificate of the embedded etcd for clients"`
	KeyFile           string   `yaml:"keyFile" flag:"etcd-key-file" help:"its key"`
	TrustedCAFile     string   `yaml:"trustedCAFile" flag:"etcd-trusted-ca-file" help:"authority of client certificates"`
	PeerCertFile      string   `yaml:"peerCertFile" flag:"etcd-peer-cert-file" help:"certificate between members"`
	PeerKeyFile       string   `yaml:"peerKeyFile" flag:"etcd-peer-key-file" help:"its key"`
	PeerTrustedCAFile string   `yaml:"peerTrustedCAFile" flag:"etcd-peer-trusted-ca-file" help:"authority of member certificates"`
	QuotaBytes        int64    `yaml:"quotaBytes" flag:"etcd-quota-backend-bytes" help:"bytes that the database may grow to; then only deletions work"`
	SnapshotCount     int64    `yaml:"snapshotCount" flag:"etcd-snapshot-count" help:"writes between raft snapshots; each write in between is held in memory"`
	HeartbeatInterval int      `yaml:"heartbeatInterval" flag:"etcd-heartbeat-interval" help:"milliseconds between heartbeats; default: 100, or 250 for a single member"`
	ElectionTimeout   int      `yaml:"electionTimeout" flag:"etcd-election-timeout" help:"milliseconds without a heartbeat until an election; default: ten heartbeats, or five for a single member"`
	UnsafeNoFsync     bool     `yaml:"unsafeNoFsync" flag:"etcd-unsafe-no-fsync" help:"do not wait for the disk; a crash of the machine loses writes"`
}

// Default is a single member of its own.
func Default() Config {
	return Config{
		Name: "keelson", DataDir: "/var/lib/keelson/etcd", InitialState: "new",
		QuotaBytes: 8 << 30, SnapshotCount: 2000,
	}
}

// Validate reports every fault.
func (c Config) Validate(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	}
	if c.DataDir == "" {
		errs = append(errs, field.Required(at.Child("dataDir"), ""))
	}
	if c.QuotaBytes < 16<<20 {
		errs = append(errs, field.Invalid(at.Child("quotaBytes"), c.QuotaBytes, "at least 16 MiB"))
	}
	if c.SnapshotCount < 1 {
		errs = append(errs, field.Invalid(at.Child("snapshotCount"), c.SnapshotCount, "at least 1"))
	}
	if s := c.InitialState; s != "new" && s != "existing" {
		errs = append(errs, field.NotSupported(at.Child("initialState"), s, []string{"new", "existing"}))
	}
	for name, list := range map[string][]string{
		"listenClients": c.ListenClients, "listenPeers": c.ListenPeers,
		"advertiseClients": c.AdvertiseClients, "advertisePeers": c.AdvertisePeers,
	} {
		for i, s := range list {
			if u, err := url.Parse(s); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
				errs = append(errs, field.Invalid(at.Child(name).Index(i), s, "must be like https://host:port"))
			} else if u.Scheme == "https" && c.CertFile == "" && strings.HasSuffix(name, "Clients") {
				errs = append(errs, field.Required(at.Child("certFile"), "https addresses need a certificate"))
			} else if u.Scheme == "https" && c.PeerCertFile == "" && strings.HasSuffix(name, "Peers") {
				errs = append(errs, field.Required(at.Child("peerCertFile"), "https addresses need a certificate"))
			}
		}
	}
	return errs
}

// Server is a running member.
type Server struct {
	cfg  Config
	log  *slog.Logger
	etcd *embed.Etcd

	// Of Maintain's goroutine: up to where history was forgotten to make room, and whether it was
	// said that it did not help.
	forgotten int64
	told      bool
}

// format is the version of the data directory: its first line in the marker file.
const (
	marker = "KEELSON_FORMAT"
	format = "1"
)

// ErrFormat: the data directory was written by another version.
var ErrFormat = errors.New("data directory has another format")

func checkFormat(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, marker)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		// New, or an etcd's own that is taken over.
		return os.WriteFile(path, []byte(format+"\n"), 0o600)
	case err != nil:
		return err
	}
	if got, _, _ := strings.Cut(string(b), "\n"); got != format {
		return fmt.Errorf("%w: %s says %q and this program writes %q; start the version that wrote it, or choose another directory",
			ErrFormat, path, got, format)
	}
	return nil
}

// Start runs a member until Close. It returns when the member serves.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (*Server, error) {
	if err := checkFormat(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("embedded etcd: %w", err)
	}
	ec, err := cfg.embed(log)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd: %w", err)
	}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("embedded etcd in %s: %w", cfg.DataDir, err)
	}
	s := &Server{cfg: cfg, log: log, etcd: e}
	if err = s.ready(ctx); err != nil {
		e.Close()
		return nil, fmt.Errorf("embedded etcd in %s: %w", cfg.DataDir, err)
	}
	return s, nil
}

// electEvery is how often a member without others is told to lead while it starts.
const electEvery = 10 * time.Millisecond

// ready waits until the member serves. A member without others need not wait for the silence of a leader that
// there is not: it is told to stand for election, as a leader tells its successor. raft looks whether something of its
// log is not applied that changes the membership, and must not be asked before it has taken note that the log is
// applied: the log is compacted by then, and raft panics when it looks for what has gone.
func (s *Server) ready(ctx context.Context) error {
	var elect <-chan time.Time
	if len(s.members()) == 1 {
		t := time.NewTicker(electEvery)
		defer t.Stop()
		elect = t.C
	}
	member := s.etcd.Server
	self := uint64(member.MemberID())
	for {
		select {
		case <-member.ReadyNotify():
			return nil
		case err := <-s.etcd.Err():
			return err
		case <-member.StopNotify():
			return errors.New("stopped while starting")
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-elect:
			if member.Leader() != 0 {
				elect = nil
				continue
			}
			if !applied(self) {
				continue
			}
			if err := member.Process(ctx, raftpb.Message{Type: raftpb.MsgTimeoutNow, From: self, To: self}); err != nil {
				s.log.Debug("cannot hurry the election", "err", err)
			}
		}
	}
}

// applied reports whether the raft node that was started last in this process is member's and has taken note that its
// whole log is applied. Nothing more is committed to that before there is a leader.
func applied(member uint64) bool {
	v, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return false
	}
	status, ok := v.Value().(raft.Status)
	return ok && status.ID == member && status.Commit > 0 && status.Applied == status.Commit
}

// How large the log's files are, and how many are kept: one that is written, and one more in case that it has
// just begun. Those that the newest snapshot needs are kept in any case. A start reads and checks them all, though only
// the few thousand writes after that snapshot are of use: etcd's own five files of 64 MB take half a second.
const (
	walFileBytes = 32 << 20
	walFiles     = 2
)

func init() { wal.SegmentSizeBytes = walFileBytes } // etcd has no other way to say it

func (c Config) embed(log *slog.Logger) (*embed.Config, error) {
	ec := embed.NewConfig()
	ec.Name, ec.Dir = c.Name, c.DataDir
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(Zap(log.With("room", "etcd")))
	ec.Logger = "zap"
	var err error
	parse := func(list []string, socket string) []url.URL {
		if len(list) == 0 && socket != "" {
			list = []string{"unix://" + filepath.Join(c.DataDir, socket)}
		}
		out := make([]url.URL, 0, len(list))
		for _, s := range list {
			u, e := url.Parse(s)
			if e != nil {
				err = e
				continue
			}
			out = append(out, *u)
		}
		return out
	}
	ec.ListenClientUrls = parse(c.ListenClients, "client.sock")
	ec.ListenPeerUrls = parse(c.ListenPeers, "peer.sock")
	// A member on sockets has nobody to tell its address to, but etcd wants one with a port.
	ec.AdvertiseClientUrls = parse(first(c.AdvertiseClients, c.ListenClients, []string{"http://localhost:2379"}), "")
	ec.AdvertisePeerUrls = parse(first(c.AdvertisePeers, c.ListenPeers, []string{"http://localhost:2380"}), "")
	if err != nil {
		return nil, err
	}
	for _, list := range [][]url.URL{ec.ListenClientUrls, ec.ListenPeerUrls} {
		for _, u := range list {
			if u.Scheme == "unix" { // left by a crash
				if err := os.Remove(u.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
					return nil, err
				}
			}
		}
	}
	ec.InitialCluster = c.InitialCluster
	if ec.InitialCluster == "" {
		ec.InitialCluster = ec.InitialClusterFromName(c.Name)
	}
	single := !strings.Contains(ec.InitialCluster, ",")
	ec.ClusterState = c.InitialState
	if c.CertFile != "" {
		ec.ClientTLSInfo = transport.TLSInfo{CertFile: c.CertFile, KeyFile: c.KeyFile, TrustedCAFile: c.TrustedCAFile, ClientCertAuth: c.TrustedCAFile != ""}
	}
	if c.PeerCertFile != "" {
		ec.PeerTLSInfo = transport.TLSInfo{CertFile: c.PeerCertFile, KeyFile: c.PeerKeyFile, TrustedCAFile: c.PeerTrustedCAFile, ClientCertAuth: c.PeerTrustedCAFile != ""}
	}
	ec.QuotaBackendBytes = c.QuotaBytes
	// Between snapshots every write stays in memory as a raft entry; catch-up entries
	// stay after them. etcd's 10,000 + 5,000 would be tens of megabytes of old pods.
	ec.SnapshotCount = uint64(c.SnapshotCount)
	ec.SnapshotCatchUpEntries = uint64(max(c.SnapshotCount/4, 100))
	if single {
		ec.SnapshotCatchUpEntries = 100
	}
	ec.MaxRequestBytes = 3 << 20 // an object may have 1.5 MiB as JSON and grow a little
	ec.TickMs, ec.ElectionMs = 100, 1000
	if single { // nobody to wait for, and each tick wakes an idle machine; others that join later wait for four of them
		ec.TickMs, ec.ElectionMs = 250, 1250
	}
	if c.HeartbeatInterval > 0 {
		ec.TickMs = uint(c.HeartbeatInterval)
		ec.ElectionMs = max(ec.ElectionMs, 10*ec.TickMs)
	}
	if c.ElectionTimeout > 0 {
		ec.ElectionMs = uint(c.ElectionTimeout)
	}
	ec.MaxWalFiles = walFiles
	ec.EnableGRPCGateway = false
	ec.UnsafeNoFsync = c.UnsafeNoFsync
	ec.BackendFreelistType = "map"
	// Every write is in the log, and synced, before it is answered. How often the pages of the database follow
	// decides how often the same pages are written again; what they lack is read from the log after a crash.
	ec.BackendBatchInterval = time.Second
	return ec, nil
}

func first(lists ...[]string) []string {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// Etcd is the member itself, for the store.
func (s *Server) Etcd() *etcdserver.EtcdServer { return s.etcd.Server }

// Err gives the error that the member stopped with on its own.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the member and waits for it.
func (s *Server) Close() {
	s.etcd.Close()
}

// How often the database's space is looked at: often while writes are refused.
const (
	tendEvery     = 30 * time.Second
	tendFullEvery = 3 * time.Second
)

// Maintain looks after the database's space until ctx ends. After the quota was used up,
// history is forgotten, the file is rewritten (the quota counts the file, which does
// not shrink by itself), and the alarm is ended as soon as there is room again. A file
// that is mostly empty is rewritten too, by one member at a time.
func (s *Server) Maintain(ctx context.Context) error {
	pause := tendFullEvery
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = tendEvery
		var err error
		if s.full() {
			pause = tendFullEvery
			err = s.makeRoom(ctx)
		} else if s.wasteful() && turn(time.Now(), s.members(), s.etcd.Server.MemberID()) {
			err = s.rewrite()
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot tend the database", "err", err)
		}
	}
}

// full reports the alarm of this member. Each looks after its own; any of them stops all writes.
func (s *Server) full() bool {
	for _, a := range s.etcd.Server.Alarms() {
		if a.Alarm == pb.AlarmType_NOSPACE && a.MemberID == uint64(s.etcd.Server.MemberID()) {
			return true
		}
	}
	return false
}

// wasteful: rewriting stops this member's writes for a moment, so it must pay.
func (s *Server) wasteful() bool {
	b := s.etcd.Server.Backend()
	return b.Size() > 256<<20 && b.SizeInUse() < b.Size()/4
}

func (s *Server) members() []types.ID {
	var ids []types.ID
	for _, m := range s.etcd.Server.Cluster().Members() {
		ids = append(ids, m.ID)
	}
	return ids
}

// turn lets members rewrite their files one after the other, without asking each other: each has
// minutes of its own, by the order of the IDs. Clocks that differ cost a slow moment, no more.
func turn(now time.Time, members []types.ID, self types.ID) bool {
	slices.Sort(members)
	i := slices.Index(members, self)
	return i >= 0 && int(now.Unix()/60)%len(members) == i
}

// makeRoom ends the space alarm if the database can be made smaller than its quota.
func (s *Server) makeRoom(ctx context.Context) error {
	b := s.etcd.Server.Backend()
	if rev := s.etcd.Server.KV().Rev(); rev > s.forgotten {
		// What was deleted is free only when its history is.
		_, err := s.etcd.Server.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true})
		if err != nil && !errors.Is(err, mvcc.ErrCompacted) {
			return fmt.Errorf("compact: %w", err)
		}
		s.forgotten = rev
		b.ForceCommit() // so that what is in use is counted anew
	}
	// Some room must be left, or the next write raises the alarm again.
	const enough = 95
	if b.SizeInUse() > s.cfg.QuotaBytes/100*enough {
		if !s.told {
			s.told = true
			s.log.Error("the database is full: only deletions work until objects are deleted or the quota is raised",
				"inUseBytes", b.SizeInUse(), "quotaBytes", s.cfg.QuotaBytes)
		}
		return nil
	}
	if b.Size() > s.cfg.QuotaBytes/100*enough {
		if err := s.rewrite(); err != nil {
			return err
		}
	}
	_, err := s.etcd.Server.Alarm(ctx, &pb.AlarmRequest{
		Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: uint64(s.etcd.Server.MemberID()),
	})
	if err != nil {
		return fmt.Errorf("end the space alarm: %w", err)
	}
	s.told = false
	s.log.Info("the database has room again, writes work", "bytes", b.Size(), "quotaBytes", s.cfg.QuotaBytes)
	return nil
}

// rewrite defragments this member's file.
func (s *Server) rewrite() error {
	b := s.etcd.Server.Backend()
	before, started := b.Size(), time.Now()
	if err := b.Defrag(); err != nil {
		return fmt.Errorf("defragment: %w", err)
	}
	s.log.Info("database was rewritten", "beforeBytes", before, "afterBytes", b.Size(), "took", time.Since(started))
	return nil
}
