package crd

import "github.com/keelson/keelson/apiserver/resources"

// Prune drops what the schema does not know from an object that admission has changed.
func (k *Kind) Prune(o resources.Object) {
	if f, err := k.forms(); err == nil {
		f.prune(content(o).Object)
	}
}
