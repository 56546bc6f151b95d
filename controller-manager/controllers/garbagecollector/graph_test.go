package garbagecollector

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

type change func(*Object)

func owner(uid string) change {
	return func(o *Object) { o.Owners = append(o.Owners, metav1.OwnerReference{UID: types.UID(uid), Name: uid}) }
}

func blocks(uid string) change {
	return func(o *Object) {
		o.Owners = append(o.Owners, metav1.OwnerReference{UID: types.UID(uid), Name: uid, BlockOwnerDeletion: ptr.To(true)})
	}
}

func deleting(finalizers ...string) change {
	return func(o *Object) { o.Deleting, o.Finalizers = true, finalizers }
}

func object(uid string, changes ...change) *Object {
	o := &Object{UID: types.UID(uid), Name: uid}
	for _, c := range changes {
		c(o)
	}
	return o
}

func TestDecide(t *testing.T) {
	const fg, orphan = metav1.FinalizerDeleteDependents, metav1.FinalizerOrphanDependents
	for _, c := range []struct {
		text    string
		objects []*Object
		ask     string
		exists  bool
		want    Action
		policy  metav1.DeletionPropagation
		gone    []types.UID
	}{
		{"nobody owns it", []*Object{object("a")}, "a", false, Nothing, "", nil},
		{"its owner is known", []*Object{object("o"), object("a", owner("o"))}, "a", false, Nothing, "", nil},
		{"its owner is not known but there", []*Object{object("a", owner("o"))}, "a", true, Nothing, "", nil},
		{"its owner is gone", []*Object{object("a", owner("o"))}, "a", false, Delete, metav1.DeletePropagationBackground, nil},
		{"one of two owners is gone", []*Object{object("o"), object("a", owner("o"), owner("p"))}, "a", false, Unref, "", []types.UID{"p"}},
		{"its owner waits for it", []*Object{object("o", deleting(fg)), object("a", blocks("o"))}, "a", false, Delete, metav1.DeletePropagationBackground, nil},
		{"its owner waits for it and it has dependents", []*Object{object("o", deleting(fg)), object("a", blocks("o")), object("b", blocks("a"))}, "a", false, Delete, metav1.DeletePropagationForeground, nil},
		{"it waits and is blocked", []*Object{object("o", deleting(fg)), object("a", blocks("o"))}, "o", false, Nothing, "", nil},
		{"it waits for what does not block", []*Object{object("o", deleting(fg)), object("a", owner("o"))}, "o", false, Release, "", nil},
		{"it lets its dependents be", []*Object{object("o", deleting(orphan)), object("a", owner("o"))}, "o", false, OrphanThem, "", nil},
		{"it is going already", []*Object{object("a", owner("o"), deleting("x"))}, "a", false, Nothing, "", nil},
		{"it is gone itself", nil, "a", false, Nothing, "", nil},
	} {
		g := NewGraph()
		for _, o := range c.objects {
			g.Observe(o)
		}
		d, err := g.Decide(types.UID(c.ask), func(*Object, metav1.OwnerReference) (bool, error) { return c.exists, nil })
		if err != nil || d.Action != c.want || d.Policy != c.policy || !slices.Equal(d.Gone, c.gone) {
			t.Errorf("%s: got %+v, %v; want action %d policy %q gone %v", c.text, d, err, c.want, c.policy, c.gone)
		}
	}
}

func TestVisits(t *testing.T) {
	g := NewGraph()
	expect := func(what string, got []types.UID, want ...types.UID) {
		t.Helper()
		slices.Sort(got)
		if !slices.Equal(slices.Compact(got), want) {
			t.Errorf("%s: visit %v, want %v", what, got, want)
		}
	}
	expect("a dependent before its owner", g.Observe(object("a", blocks("o"))), "a")
	expect("its owner", g.Observe(object("o")))
	expect("a second dependent", g.Observe(object("b", blocks("o"))))
	expect("the owner begins to wait", g.Observe(object("o", deleting(metav1.FinalizerDeleteDependents))), "a", "b", "o")
	expect("one dependent is gone", g.Forget("a"), "o")
	expect("the other one lets go: nothing blocks the owner", g.Observe(object("b")), "o")
	expect("the owner is gone", g.Forget("o"))
	g.Observe(object("p"))
	g.Observe(object("c", owner("p")))
	expect("an owner is gone", g.Forget("p"), "c")
	if len(g.dependents) != 1 { // c still names p
		t.Errorf("links left behind: %v", g.dependents)
	}
	g.Forget("c")
	if len(g.dependents) != 0 {
		t.Errorf("links left behind: %v", g.dependents)
	}
}
