package framework

import (
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is the state that a decision reads. Package cache keeps one up to date; what is reached
// through it is read-only for plugins and the cycle (the counts of Matching and Owners are filled on
// first use, by whoever owns the snapshot).
//
// Invariants: Nodes[i] is nil or has Slot i; Generations[i] = Nodes[i].Generation, or 0; Live is the
// number of nodes that are not nil.
type Snapshot struct {
	Nodes       []*Node
	Generations []uint64 // the nodes' generations side by side: looking for changes reads only these
	ByName      map[string]int
	Live        int

	Namespaces map[string]labels.Set
	PDBs       map[types.NamespacedName]*policyv1.PodDisruptionBudget
	Volumes    Volumes
	Owners     Selectors

	Counts *Counts
	images map[string]int // image name → number of nodes that have it
}

// Volumes is what the volume phases know of the storage objects.
type Volumes struct {
	Claims  map[types.NamespacedName]*corev1.PersistentVolumeClaim
	Volumes map[string]*corev1.PersistentVolume
	Classes map[string]*storagev1.StorageClass
	// Chosen are volumes that an earlier decision has given to a claim and the API does not show yet.
	Chosen map[string]types.NamespacedName
	// ClaimUsers counts pods on nodes by claim, for claims of mode ReadWriteOncePod.
	ClaimUsers map[types.NamespacedName]int
}

// Selectors are those of the objects that own or serve pods; the default spread constraints count by them.
type Selectors struct {
	Services map[types.NamespacedName]labels.Set
	// ByUID are selectors of ReplicaSets, ReplicationControllers and StatefulSets.
	ByUID map[types.UID]labels.Selector
}

// NewSnapshot is an empty cluster.
func NewSnapshot() *Snapshot {
	s := &Snapshot{
		ByName:     map[string]int{},
		Namespaces: map[string]labels.Set{},
		PDBs:       map[types.NamespacedName]*policyv1.PodDisruptionBudget{},
		Volumes: Volumes{
			Claims: map[types.NamespacedName]*corev1.PersistentVolumeClaim{}, Volumes: map[string]*corev1.PersistentVolume{},
			Classes: map[string]*storagev1.StorageClass{}, Chosen: map[string]types.NamespacedName{}, ClaimUsers: map[types.NamespacedName]int{},
		},
		Owners: Selectors{Services: map[types.NamespacedName]labels.Set{}, ByUID: map[types.UID]labels.Selector{}},
		images: map[string]int{},
	}
	s.Counts = newCounts(s)
	return s
}

// Node finds a node by name.
func (s *Snapshot) Node(name string) *Node {
	if i, ok := s.ByName[name]; ok {
		return s.Nodes[i]
	}
	return nil
}

// NamespaceLabels are the labels of a namespace, none when it is not known.
func (s *Snapshot) NamespaceLabels(name string) labels.Set { return s.Namespaces[name] }

// NodesWithImage is the number of nodes that have an image of this name.
func (s *Snapshot) NodesWithImage(name string) int { return s.images[name] }

// Put publishes a node in its slot, with a new generation; the counts follow. old is what it replaces.
func (s *Snapshot) Put(n *Node, generation uint64) {
	for len(s.Nodes) <= n.Slot {
		s.Nodes = append(s.Nodes, nil)
		s.Generations = append(s.Generations, 0)
	}
	old := s.Nodes[n.Slot]
	n.Generation = generation
	s.Nodes[n.Slot], s.Generations[n.Slot] = n, generation
	if old == nil {
		s.Live++
		s.ByName[n.Node.Name] = n.Slot
	}
	if old == nil || old.Node != n.Node {
		s.countImages(old, -1)
		s.countImages(n, 1)
		s.Counts.placeNode(n)
	}
}

// Drop takes a node out. Its pods must have been taken off before.
func (s *Snapshot) Drop(slot int) {
	old := s.Nodes[slot]
	s.countImages(old, -1)
	s.Nodes[slot], s.Generations[slot] = nil, 0
	delete(s.ByName, old.Node.Name)
	s.Live--
	s.Counts.removeNode(slot)
}

func (s *Snapshot) countImages(n *Node, sign int) {
	if n == nil {
		return
	}
	for name := range n.Images {
		if s.images[name] += sign; s.images[name] == 0 {
			delete(s.images, name)
		}
	}
}
