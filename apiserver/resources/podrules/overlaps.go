package podrules

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// projectedFile is a file of a volume, and where it comes from where a volume has several sources.
type projectedFile struct{ path, source string }

func (f projectedFile) String() string {
	if f.source == "" {
		return fmt.Sprintf("%q", f.path)
	}
	return fmt.Sprintf("%q (%s)", f.path, f.source)
}

// within reports a file that is the other one, or a directory above it.
func (f projectedFile) within(o projectedFile) bool {
	return strings.HasPrefix(f.path+"/", o.path+"/")
}

func keyFiles(items []corev1.KeyToPath, source string) []projectedFile {
	var out []projectedFile
	for _, item := range items {
		out = append(out, projectedFile{item.Path, source})
	}
	return out
}

func downwardFiles(items []corev1.DownwardAPIVolumeFile, source string) []projectedFile {
	var out []projectedFile
	for _, item := range items {
		out = append(out, projectedFile{item.Path, source})
	}
	return out
}

// overlaps warns about files that hide each other inside one volume.
func (w *warnings) overlaps(volumes []corev1.Volume) {
	for i := range volumes {
		v := &volumes[i]
		within := func(what string, files []projectedFile) {
			for i := range files {
				files[i].path = strings.TrimRight(files[i].path, "/")
				for _, o := range files[:i] {
					if f := files[i]; f.path != "" && o.path != "" && (f.within(o) || o.within(f)) {
						*w = append(*w, fmt.Sprintf("volume %q (%s): overlapping paths: %s with %s", v.Name, what, f, o))
					}
				}
			}
		}
		if v.ConfigMap != nil {
			within(fmt.Sprintf("ConfigMap %q", v.ConfigMap.Name), keyFiles(v.ConfigMap.Items, ""))
		}
		if v.Secret != nil {
			within(fmt.Sprintf("Secret %q", v.Secret.SecretName), keyFiles(v.Secret.Items, ""))
		}
		if v.DownwardAPI != nil {
			within("DownwardAPI", downwardFiles(v.DownwardAPI.Items, ""))
		}
		if v.Projected == nil {
			continue
		}
		var files []projectedFile
		for _, s := range v.Projected.Sources {
			if s == (corev1.VolumeProjection{}) {
				*w = append(*w, fmt.Sprintf("volume %q (Projected) has no sources provided", v.Name))
			}
			files = append(files, sourceFiles(&s)...)
		}
		within("Projected", files)
	}
}

func sourceFiles(s *corev1.VolumeProjection) []projectedFile {
	switch {
	case s.ConfigMap != nil && s.ConfigMap.Items != nil:
		return keyFiles(s.ConfigMap.Items, fmt.Sprintf("ConfigMap %q", s.ConfigMap.Name))
	case s.Secret != nil && s.Secret.Items != nil:
		return keyFiles(s.Secret.Items, fmt.Sprintf("Secret %q", s.Secret.Name))
	case s.DownwardAPI != nil && s.DownwardAPI.Items != nil:
		return downwardFiles(s.DownwardAPI.Items, "DownwardAPI")
	case s.ServiceAccountToken != nil:
		return []projectedFile{{s.ServiceAccountToken.Path, "ServiceAccountToken"}}
	}
	return nil
}
