package sources

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/keelson/keelson/kubelet/pod"
)

// Annotations that mark where a pod comes from. Source: upstream's kubelet.
const (
	AnnotationHash = "kubernetes.io/config.hash"
	AnnotationSeen = "kubernetes.io/config.seen"
)

// Sink is told what is wanted. Implemented by worker.Pool.
type Sink interface {
	Update(*corev1.Pod)
	Remove(*corev1.Pod)
	// UIDs are the pods that are still being worked on.
	UIDs() map[types.UID]bool
	// Static are the static pods of an earlier kubelet that still run and that Update has not been told of.
	Static(ctx context.Context) ([]*corev1.Pod, error)
}

// manifestBytes bounds a manifest. Source: upstream's kubelet.
const manifestBytes = 10 << 20

// Static reads manifests, of one pod each: those in a directory, whatever their names are unless they
// begin with a dot, or a single one. Directories within are not looked into.
// A file that changes is another pod; the old one is gone before the new one is started.
type Static struct {
	path, node string
	sink       Sink
	mirrors    *Mirrors
	log        *slog.Logger
	period     time.Duration

	// Owned by Run.
	running map[types.UID]*corev1.Pod
	ending  map[types.UID]bool // those of running that were told to end; one that is wanted again begins anew once it has
	stamps  map[string]stamp
	read    map[string]*corev1.Pod // by file
	first   chan struct{}
	adopted bool // it is known what an earlier kubelet has left
}

type stamp struct {
	modified time.Time
	size     int64
}

// NewStatic starts nothing. path is a directory or a file; an empty one has no pods.
func NewStatic(path, node string, sink Sink, mirrors *Mirrors, log *slog.Logger) *Static {
	return &Static{path: path, node: node, sink: sink, mirrors: mirrors, log: log, period: time.Second,
		running: map[types.UID]*corev1.Pod{}, ending: map[types.UID]bool{}, stamps: map[string]stamp{}, read: map[string]*corev1.Pod{}, first: make(chan struct{})}
}

// Synced is closed when the manifests have been read once, and it is known what ran before.
func (s *Static) Synced() <-chan struct{} { return s.first }

// Run follows the directory until ctx ends.
func (s *Static) Run(ctx context.Context) error {
	tick := time.NewTicker(s.period)
	defer tick.Stop()
	for told := false; ; {
		if s.path != "" {
			s.once(ctx)
		}
		if !told && (s.path == "" || s.adopted) {
			told = true
			close(s.first)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// once compares the files with what runs.
func (s *Static) once(ctx context.Context) {
	if err := s.scan(); err != nil {
		if !os.IsNotExist(err) {
			s.log.Warn("reading static pods failed", "path", s.path, "err", err)
			return // what runs keeps running
		}
		clear(s.read)
	}
	want := map[types.UID]*corev1.Pod{}
	for _, p := range s.read {
		if p != nil {
			want[p.UID] = p
		}
	}
	if !s.adopted {
		// What changed while no kubelet ran: the old pod has to end before the new one begins, as ever.
		old, err := s.sink.Static(ctx)
		if err != nil {
			s.log.Warn("looking for static pods of an earlier kubelet failed", "err", err)
			return
		}
		s.adopted = true
		for _, p := range old {
			if want[p.UID] == nil {
				s.running[p.UID] = p
				s.sink.Update(p)
			}
		}
	}
	for uid, p := range s.running {
		if want[uid] == nil && !s.ending[uid] {
			s.ending[uid] = true
			s.log.Info("static pod removed", "pod", p.Namespace+"/"+p.Name, "uid", uid)
			s.sink.Remove(p)
		}
	}
	alive := s.sink.UIDs()
	names := map[string]types.UID{}
	for uid, p := range s.running {
		if s.ending[uid] && !alive[uid] {
			delete(s.running, uid)
			delete(s.ending, uid)
			continue
		}
		names[p.Namespace+"/"+p.Name] = uid
	}
	for uid, p := range want {
		if s.running[uid] != nil {
			continue
		}
		name := p.Namespace + "/" + p.Name
		if _, taken := names[name]; taken {
			continue // its predecessor is still ending
		}
		names[name] = uid
		s.running[uid] = p
		s.log.Info("static pod", "pod", name, "uid", uid)
		s.sink.Update(p)
	}
	s.mirrors.Static(slices.Collect(maps.Values(want)))
}

// scan reads the files that have changed.
func (s *Static) scan() error {
	paths, err := s.paths()
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		there[path] = true
		now := stamp{info.ModTime(), info.Size()}
		if s.stamps[path] == now {
			continue
		}
		s.stamps[path] = now
		p, err := s.load(path)
		if err != nil {
			// A manifest that is being written, or is wrong: what ran from it stays.
			s.log.Error("a static pod's manifest is not valid", "file", path, "err", err)
			continue
		}
		s.read[path] = p
	}
	for path := range s.stamps {
		if !there[path] {
			delete(s.stamps, path)
			delete(s.read, path)
		}
	}
	return nil
}

// paths are the files that may be manifests, in the order of their names.
func (s *Static) paths() ([]string, error) {
	info, err := os.Stat(s.path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{s.path}, nil
	}
	entries, err := os.ReadDir(s.path)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			out = append(out, filepath.Join(s.path, e.Name()))
		}
	}
	return out, nil
}

func (s *Static) load(path string) (*corev1.Pod, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, manifestBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > manifestBytes {
		return nil, fmt.Errorf("larger than %d bytes", manifestBytes)
	}
	return Parse(text, path, s.node)
}

// Parse makes a pod of a manifest as the API server would: defaults are filled in, the name
// ends in the node's, and the UID follows from content, file and node, so that a restart
// finds its pod again.
func Parse(text []byte, file, node string) (*corev1.Pod, error) {
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(text, nil, nil)
	if err != nil {
		return nil, err
	}
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("want a v1 Pod, have a %T", obj)
	}
	if p.Name == "" {
		return nil, errors.New("invalid pod: name is needed for the pod")
	}
	if p.UID == "" {
		canonical, err := runtime.Encode(scheme.Codecs.LegacyCodec(corev1.SchemeGroupVersion), p)
		if err != nil {
			return nil, err
		}
		sum := md5.New()
		sum.Write(canonical)
		fmt.Fprintf(sum, "host:%sfile:%s", node, file)
		p.UID = types.UID(hex.EncodeToString(sum.Sum(nil)))
	}
	p.Name += "-" + strings.ToLower(node)
	if p.Namespace == "" {
		p.Namespace = corev1.NamespaceDefault
	}
	p.Spec.NodeName = node
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[AnnotationHash] = string(p.UID)
	p.Annotations[pod.AnnotationSource] = "file"
	p.Annotations[AnnotationSeen] = time.Now().Format(time.RFC3339Nano)
	p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: pod.QOS(p)}
	defaults(p)
	if errs := faults(p); len(errs) > 0 {
		return nil, fmt.Errorf("invalid pod: %w", errs.ToAggregate())
	}
	if what := needsAPI(&p.Spec); what != "" {
		return nil, fmt.Errorf("static pods may not reference %s", what)
	}
	return p, nil
}
