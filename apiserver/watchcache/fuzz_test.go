package watchcache

import (
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
)

// The header that is read from a message says what the decoded object says.
func FuzzHeader(f *testing.F) {
	rows := resources.Table()
	yes := true
	for i, row := range rows {
		if row.New == nil || row.Custom != nil {
			continue
		}
		obj := row.New()
		obj.SetName("n")
		obj.SetNamespace("ns")
		obj.SetUID("u")
		obj.SetLabels(map[string]string{"a": "b", "": "c"})
		obj.SetOwnerReferences([]metav1.OwnerReference{{Kind: "K", Name: "o", UID: "v", Controller: &yes}})
		now := metav1.Unix(1, 0)
		obj.SetDeletionTimestamp(&now)
		if p, ok := obj.(*corev1.Pod); ok {
			p.Spec.NodeName = "node"
		}
		if raw, err := codec.Message(row, obj); err == nil {
			f.Add(uint8(i), raw)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		row := rows[int(kind)%len(rows)]
		if row.New == nil || row.Custom != nil || row.Stored != nil {
			return
		}
		it, err := NewItem(row, row.Prefix+"/k", raw, 9, 3, nil) // any bytes: no panic
		obj, decodeErr := codec.DecodeMessage(row, raw)
		if decodeErr != nil {
			return
		}
		if err != nil {
			t.Fatalf("%s can be decoded but not be kept: %v", row.Kind, err)
		}
		if raw, err = codec.Message(row, obj); err != nil {
			return
		}
		if it, err = NewItem(row, row.Prefix+"/k", raw, 9, 3, nil); err != nil {
			t.Fatal(err)
		}
		h, labels := it.Head(), map[string]string{}
		for _, l := range h.Labels {
			labels[l.Key] = l.Value
		}
		if h.Name != obj.GetName() || h.Namespace != obj.GetNamespace() || h.UID != obj.GetUID() ||
			!maps.Equal(labels, obj.GetLabels()) || len(h.Owners) != len(obj.GetOwnerReferences()) ||
			h.Deleting != (obj.GetDeletionTimestamp() != nil) {
			t.Fatalf("%s: header %+v of %+v", row.Kind, h, obj)
		}
		if p, ok := obj.(*corev1.Pod); ok && it.node != p.Spec.NodeName {
			t.Fatalf("node %q, spec.nodeName %q", it.node, p.Spec.NodeName)
		}
		whole, err := it.Object()
		if err != nil || whole.GetResourceVersion() != "9" {
			t.Fatalf("%s: %v, %v", row.Kind, whole, err)
		}
	})
}

// Whatever the selectors, an index finds what a look at every object finds.
func FuzzSelection(f *testing.F) {
	f.Add("app=x", "spec.nodeName=n1", "a", "")
	f.Add("app in (x,y),!tier", "metadata.name=p1,status.phase!=Running", "", "p1")
	f.Add("app notin (x)", "spec.nodeName=,metadata.namespace=b", "b", "")
	f.Add("a>1", `metadata.name=a\,b`, "", "")
	reg := testRegistry(f)
	pods := reg.Lookup("", "v1", "pods")
	var all []*Item
	var objs []*corev1.Pod
	trees := newTrees()
	for i, ns := range []string{"a", "b", "ab"} {
		for j, name := range []string{"p1", "p2", "p", "a,b"} {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
			p.Spec.NodeName = []string{"", "n1", "n2"}[(i+j)%3]
			p.Status.Phase = []corev1.PodPhase{"Running", "Pending"}[j%2]
			if app := []string{"", "x", "y"}[(i*j)%3]; app != "" {
				p.Labels = map[string]string{"app": app, "a": "2"}
			}
			raw, err := codec.Message(pods, p)
			if err != nil {
				f.Fatal(err)
			}
			it, err := NewItem(pods, pods.Key(ns, name), raw, int64(10*i+j+1), 1, nil)
			if err != nil {
				f.Fatal(err)
			}
			trees.set(it, nil)
			all, objs = append(all, it), append(objs, p)
		}
	}
	snap := &Snapshot{rev: 100, trees: trees}
	f.Fuzz(func(t *testing.T, label, field, namespace, name string) {
		sel := Selection{Prefix: "pods", Namespaced: true, Namespace: namespace, Name: name}
		if name != "" && namespace == "" {
			sel.Name = "" // no path names an object without its namespace
		}
		var err error
		if sel.Labels, err = labels.Parse(label); err != nil {
			return
		}
		if sel.Fields, err = fields.ParseSelector(field); err != nil {
			return
		}
		want, got := map[string]bool{}, map[string]bool{}
		for i, it := range all {
			if sees(sel, it.Key, objs[i]) {
				want[it.Key] = true
			}
		}
		last := ""
		snap.Scan(sel, "", func(it *Item) bool {
			if it.Key <= last {
				t.Fatalf("%s after %s", it.Key, last)
			}
			last = it.Key
			got[it.Key] = true
			return true
		})
		if !maps.Equal(want, got) {
			t.Fatalf("labels %q, fields %q, %q/%q:\ngot  %v\nwant %v", label, field, namespace, name, got, want)
		}
	})
}
