// Package admission changes or refuses writes after authorization and before
// validation. One file per plugin; Table is the ordered chain.
package admission

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/audit"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/resources"
)

// Operation is what the request does, in the words of admissionregistration/v1.
type Operation string

const (
	Create  Operation = "CREATE"
	Update  Operation = "UPDATE"
	Delete  Operation = "DELETE"
	Connect Operation = "CONNECT"
)

// Attributes describes one write. Plugins may change Object in place while
// mutating and must not change it while validating. Old is shared and read-only.
type Attributes struct {
	Operation       Operation
	Row             *resources.Row
	Subresource     string // "" for the object itself
	Namespace, Name string // Name is empty while it is still to be generated
	User            *authn.User
	Request         *resources.Request // reader, warnings, dry run
	// Object is the new object: nil for Delete, the subresource's own kind for
	// "binding", "eviction" and the like, the options for Connect.
	Object  runtime.Object
	Old     runtime.Object // nil for Create and Connect
	Options runtime.Object // metav1.CreateOptions, UpdateOptions, DeleteOptions

	// Round is 0, and 1 while the mutating halves run a second time.
	Round int
	// Memo is where a plugin keeps what it must know in the second round, by its name.
	Memo  map[string]any
	again bool
}

// Kind is the kind of Object: the row's own, or that of a subresource with a kind of its own.
func (a *Attributes) Kind() schema.GroupVersionKind {
	return KindIn(a.Row, a.Subresource)
}

// KindIn is the kind that a request on a row, or on a subresource of it, carries.
func KindIn(row *resources.Row, subresource string) schema.GroupVersionKind {
	if subresource != "" {
		for i := range row.Subs {
			if s := &row.Subs[i]; s.Name == subresource && !s.Kind.Empty() {
				return s.Kind
			}
		}
	}
	return row.GVK()
}

// Annotate adds to the audit event of the request, if there is one. ctx is the request's.
func Annotate(ctx context.Context, key, value string) { audit.From(ctx).Annotate(key, value) }

// Again asks for a second round of the mutating halves: what came from outside has
// changed Object, and the plugins before it have not seen that. There is no third round.
func (a *Attributes) Again() { a.again = true }

// Plugin is one row of the chain. Either function may be nil. An error that is an
// apierrors.APIStatus is sent as it is; any other becomes 403 Forbidden with the
// plugin's message. undo, when not nil, is called if the write fails afterwards.
type Plugin struct {
	Name     string
	Mutate   func(ctx context.Context, a *Attributes) error
	Validate func(ctx context.Context, a *Attributes) (undo func(), err error)

	times, chain *times // its own, and those of the chain it stands in; nil: nobody asks
}

// Chain runs its plugins in order.
type Chain []Plugin

// Mutate runs the mutating halves, and once more when one of them has asked for
// it with [Attributes.Again]. It stops at the first error.
func (c Chain) Mutate(ctx context.Context, a *Attributes) error {
	whole := c.whole()
	began := whole.start()
	err := c.mutate(ctx, a, began)
	whole.took(admitStep, a.Operation, err != nil, began)
	return err
}

func (c Chain) mutate(ctx context.Context, a *Attributes, now time.Time) error {
	a.again = false
	for a.Round = 0; ; a.Round++ {
		for i := range c {
			p := &c[i]
			if p.Mutate != nil {
				err := p.Mutate(ctx, a)
				now = p.times.took(admitStep, a.Operation, err != nil, now)
				if err != nil {
					return err
				}
			}
		}
		if !a.again || a.Round > 0 {
			return nil
		}
	}
}

// Validate runs the validating halves. On success undo takes back what plugins
// have reserved (quota); it is never nil. On failure everything is taken back already.
func (c Chain) Validate(ctx context.Context, a *Attributes) (undo func(), err error) {
	whole := c.whole()
	began := whole.start()
	undo, err = c.validate(ctx, a, began)
	whole.took(validateStep, a.Operation, err != nil, began)
	return undo, err
}

func (c Chain) validate(ctx context.Context, a *Attributes, now time.Time) (undo func(), err error) {
	var undos []func()
	undo = func() {
		for i := len(undos) - 1; i >= 0; i-- {
			undos[i]()
		}
	}
	for i := range c {
		p := &c[i]
		if p.Validate == nil {
			continue
		}
		u, err := p.Validate(ctx, a)
		now = p.times.took(validateStep, a.Operation, err != nil, now)
		if u != nil {
			undos = append(undos, u)
		}
		if err != nil {
			undo()
			return func() {}, err
		}
	}
	return undo, nil
}
