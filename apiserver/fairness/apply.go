package fairness

import (
	"context"
	"fmt"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/keelson/keelson/apiserver/resources"
)

// apply carries out one step; somebody else's change in between makes it void.
func (c *Controller) apply(ctx context.Context, s Step) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var err error
	switch s.Do {
	case Create:
		if err = c.cfg.Writer.Create(ctx, s.Resource, s.Create); apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case Update:
		err = c.cfg.Writer.Update(ctx, s.Resource, "", s.Name, func(o resources.Object) bool {
			if o.GetUID() != s.UID {
				return false
			}
			switch o := o.(type) {
			case *flowcontrolv1.FlowSchema:
				o.Spec = *s.Flow.DeepCopy()
			case *flowcontrolv1.PriorityLevelConfiguration:
				o.Spec = *s.Level.DeepCopy()
			}
			return true
		})
	case Status:
		err = c.cfg.Writer.Update(ctx, s.Resource, "status", s.Name, func(o resources.Object) bool {
			f, ok := o.(*flowcontrolv1.FlowSchema)
			if !ok || f.UID != s.UID {
				return false
			}
			for i := range f.Status.Conditions {
				if f.Status.Conditions[i].Type == s.Dangling.Type {
					f.Status.Conditions[i] = *s.Dangling
					return true
				}
			}
			f.Status.Conditions = append(f.Status.Conditions, *s.Dangling)
			return true
		})
	case Delete:
		err = c.cfg.Writer.Delete(ctx, s.Resource, s.Name, s.UID)
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the log brings what has changed
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	return nil
}
