package sources

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
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
	AnnotationSource = "kubernetes.io/config.source"
	AnnotationHash   = "kubernetes.io/config.hash"
	AnnotationSeen   = "kubernetes.io/config.seen"
)

// Sink is told what is wanted. Implemented by worker.Pool.
type Sink interface {
	Update(*corev1.Pod)
	Remove(*corev1.Pod)
	// UIDs are the pods that are still being worked on.
	UIDs() map[types.UID]bool
}

// Static reads the manifests in a directory: one pod in each *.yaml, *.yml or *.json file.
// A file that changes is another pod; the old one is gone before the new one is started.
type Static struct {
	dir, node string
	sink      Sink
	mirrors   *Mirrors
	log       *slog.Logger
	period    time.Duration

	// Owned by Run.
	running map[types.UID]*corev1.Pod
	stamps  map[string]stamp
	read    map[string]*corev1.Pod // by file
	first   chan struct{}
}

type stamp struct {
	modified time.Time
	size     int64
}

// NewStatic starts nothing. An empty dir has no pods.
func NewStatic(dir, node string, sink Sink, mirrors *Mirrors, log *slog.Logger) *Static {
	return &Static{dir: dir, node: node, sink: sink, mirrors: mirrors, log: log, period: time.Second,
		running: map[types.UID]*corev1.Pod{}, stamps: map[string]stamp{}, read: map[string]*corev1.Pod{}, first: make(chan struct{})}
}

// Synced is closed when the directory has been read once.
func (s *Static) Synced() <-chan struct{} { return s.first }

// Run follows the directory until ctx ends.
func (s *Static) Run(ctx context.Context) error {
	tick := time.NewTicker(s.period)
	defer tick.Stop()
	for first := true; ; first = false {
		if s.dir != "" {
			s.once()
		}
		if first {
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
func (s *Static) once() {
	if err := s.scan(); err != nil {
		if !os.IsNotExist(err) {
			s.log.Warn("reading static pods failed", "dir", s.dir, "err", err)
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
	for uid, p := range s.running {
		if want[uid] == nil {
			s.log.Info("static pod removed", "pod", p.Namespace+"/"+p.Name)
			s.sink.Remove(p)
		}
	}
	alive := s.sink.UIDs()
	names := map[string]types.UID{}
	for uid, p := range s.running {
		if want[uid] == nil && !alive[uid] {
			delete(s.running, uid)
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
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		info, err := os.Stat(path)
		if err != nil {
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

func (s *Static) load(path string) (*corev1.Pod, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
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
	if p.Name == "" || len(p.Spec.Containers) == 0 {
		return nil, fmt.Errorf("a pod needs a name and a container")
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
	p.Annotations[AnnotationSource] = "file"
	p.Annotations[AnnotationSeen] = time.Now().Format(time.RFC3339Nano)
	p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: pod.QOS(p)}
	defaults(p)
	return p, nil
}
